"""The MSI capability: up to 32 messages with one address.

Source: PCI Local Bus Specification 3.0, section 6.8.1.
"""

from __future__ import annotations

from pyvmm_device.errors import PciError
from pyvmm_device.irq_config import MsiIrqConfig
from pyvmm_device.pci.config_space import CAP_MSI, requester_id
from pyvmm_device.state import Stateful, load_fields

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from pyvmm_device.interrupt_group import InterruptSourceGroup
    from pyvmm_device.pci.config_space import Owner

ENABLE, MULTIPLE_ENABLE, WIDE, MASKABLE = 0x0001, 0x0070, 0x0080, 0x0100
CONTROL, ADDRESS, DATA, MASK, PENDING = 2, 4, 12, 16, 20


class MsiCapability:
    """Message-signalled interrupts of a function; see `PciFunction.add_msi`."""

    def __init__(self, function: Owner, group: InterruptSourceGroup, per_vector_masking: bool) -> None:
        count = len(group)
        if count > 32 or count & (count - 1):
            raise PciError(f"MSI has 1, 2, 4, 8, 16 or 32 interrupts, not {count}: use MSI-X")
        self.function = function
        self.group = group
        self._count = count
        self._maskable = per_vector_masking
        control = WIDE | MASKABLE * per_vector_masking | (count.bit_length() - 1) << 1
        body = bytearray(22 if per_vector_masking else 12)
        body[0:2] = control.to_bytes(2, "little")
        writable = bytearray(len(body))
        writable[0] = ENABLE | MULTIPLE_ENABLE
        writable[2:12] = b"\xfc" + b"\xff" * 9
        if per_vector_masking:
            writable[14:18] = ((1 << count) - 1).to_bytes(4, "little")
        self.offset = function.config.add_capability(
            CAP_MSI, bytes(body), bytes(writable), on_write=self._on_write, on_read=self._on_read
        )

        if per_vector_masking:
            function.config.vary(self.offset + PENDING, 4, (1 << count) - 1)

    def _on_write(self, offset: int, length: int) -> None:  # noqa: ARG002 - any part of it changes messages
        self.refresh()

    def _on_read(self, offset: int, length: int) -> None:
        if self._maskable and offset + length > PENDING:
            bits = sum(self.group.is_pending(vector) << vector for vector in range(len(self.group)))
            with self.function.lock:
                self.function.config.put(self.offset + PENDING, 4, bits)

    @property
    def enabled(self) -> bool:
        """Whether the guest uses it."""
        return bool(self.function.config.data[self.offset + CONTROL] & ENABLE)

    @property
    def vectors(self) -> int:
        """How many different messages the guest allows."""
        allowed = (self.function.config.data[self.offset + CONTROL] & MULTIPLE_ENABLE) >> 4
        return min(1 << min(allowed, 5), self._count)

    def refresh(self) -> None:
        """Tell the group what the registers say, when the function's lock is released."""
        config, lock, group = self.function.config, self.function.lock, self.group
        with lock:
            enabled, vectors = self.enabled, self.vectors
            if not enabled:
                lock.after(group.disable)
            low, high = config.get(self.offset + ADDRESS, 4), config.get(self.offset + ADDRESS + 4, 4)
            data = config.get(self.offset + DATA, 2)
            masks = config.get(self.offset + MASK, 4) if self._maskable else 0
            for vector in range(self._count):
                # "The function is permitted to modify the low order bits" of the data, as many as number the vectors
                message = data & ~(vectors - 1) | vector & (vectors - 1)
                # what was held back goes out as the message is now, also where one access changes both
                if masks >> vector & 1:
                    lock.after(group.mask, vector)
                lock.after(group.update, vector, MsiIrqConfig(high, low, message, requester_id(self.function)))
                if not masks >> vector & 1:
                    lock.after(group.unmask, vector)
            if enabled:
                lock.after(group.enable)
            self.function.update_intx()

    def state(self) -> dict[str, Any]:
        """Return what is pending."""
        return self.group.state() if isinstance(self.group, Stateful) else {}

    def check_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is pending, checked; raises as `restore`."""
        if isinstance(self.group, Stateful):
            return self.group.check_state(state)
        return load_fields("MsiCapability", {}, state, others=())

    def restore(self, state: Mapping[str, Any]) -> None:
        """Have pending what a state says, raises `DeviceStateError`; `refresh` follows when the registers are back."""
        self.check_state(state)
        if isinstance(self.group, Stateful):
            self.group.disable()
            self.group.restore(state)
