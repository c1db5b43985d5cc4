"""MSI-X: a table of messages in a BAR, each with an address of its own, and the bits of those that wait.

Source: PCI Local Bus Specification 3.0, section 6.8.2.
"""

from __future__ import annotations

from pyvmm_device.composite import Composite
from pyvmm_device.errors import PciError
from pyvmm_device.irq_config import MsiIrqConfig
from pyvmm_device.pci.config_space import CAP_MSIX, requester_id
from pyvmm_device.state import PART, Stateful, blob, load_fields

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from pyvmm_device.interrupt_group import InterruptSourceGroup
    from pyvmm_device.locks import DeferringLock
    from pyvmm_device.pci.config_space import Owner

ENABLE, FUNCTION_MASK = 0x8000, 0x4000
CONTROL = 2
ENTRY_SIZE = 16
ENTRY_DATA, ENTRY_CONTROL = 8, 12
VECTOR_MASKED = 1
EMPTY_ENTRY = bytes(12) + b"\x01\0\0\0"


class MsixCapability(Stateful):
    """MSI-X of a function; see `PciFunction.add_msix`.

    A device that wants table and pending bits in a BAR with other things puts `table` and `pba` there itself and calls
    `place` instead of `add_bar`.
    """

    def __init__(self, function: Owner, group: InterruptSourceGroup) -> None:
        self.function = function
        self.group = group
        self.offset = 0
        self._count = len(group)
        self.lock: DeferringLock = function.lock
        self._table = bytearray(EMPTY_ENTRY * len(group))
        self.STATE = {"table": blob(len(self._table))}  # type: ignore[misc]  # the size is the instance's
        self.table = MsixTable(self)
        self.pba = MsixPendingBits(self)

    def place(self, table_bar: int, table_offset: int, pba_bar: int, pba_offset: int) -> None:
        """Add the capability, which says where table and pending bits are; offsets are multiples of 8."""
        if (table_offset | pba_offset) & 7:
            raise PciError(f"MSI-X table at {table_offset:#x}, pending bits at {pba_offset:#x}: not multiples of 8")
        body = (len(self.group) - 1).to_bytes(2, "little")
        body += (table_offset | table_bar).to_bytes(4, "little") + (pba_offset | pba_bar).to_bytes(4, "little")
        self.offset = self.function.config.add_capability(CAP_MSIX, body, b"\x00\xc0", on_write=self._on_control)
        self.refresh()

    def add_bar(self, index: int) -> None:
        """Put table and pending bits into a BAR of their own, each in a page of its own."""
        pba_at = (len(self._table) + 0xFFF) & ~0xFFF
        size = 1 << (pba_at + len(self.pba) - 1).bit_length()
        self.function.add_bar(index, size, Composite(size, {0: self.table, pba_at: self.pba}))
        self.place(index, 0, index, pba_at)

    @property
    def enabled(self) -> bool:
        """Whether the guest uses it."""
        return bool(self.function.config.get(self.offset + CONTROL, 2) & ENABLE)

    def _on_control(self, offset: int, length: int) -> None:  # noqa: ARG002 - the rest is read-only
        self.refresh()

    def refresh(self) -> None:
        """Tell the group what the registers and the table say, when the function's lock is released."""
        with self.lock:
            enabled = self.enabled
            if not enabled:
                self.lock.after(self.group.disable)
            for vector in range(self._count):
                self._refresh(vector)
            if enabled:
                self.lock.after(self.group.enable)
            self.function.update_intx()

    def _refresh(self, vector: int) -> None:
        at = vector * ENTRY_SIZE
        low, high, data, control = (
            int.from_bytes(self._table[at + part : at + part + 4], "little") for part in range(0, ENTRY_SIZE, 4)
        )
        masked = control & VECTOR_MASKED or self.function.config.get(self.offset + CONTROL, 2) & FUNCTION_MASK
        if masked:
            self.lock.after(self.group.mask, vector)
        else:
            message = MsiIrqConfig(high, low & ~3, data, requester_id(self.function))
            self.lock.after(self.group.update, vector, message)
            self.lock.after(self.group.unmask, vector)

    def table_read(self, offset: int, buffer: memoryview) -> None:
        """Read the table."""
        buffer[:] = self._table[offset : offset + len(buffer)].ljust(len(buffer), b"\0")

    def table_write(self, offset: int, data: memoryview) -> None:
        """Write the table. "Software ... must use aligned DWORD or QWORD transactions": others are ignored."""
        if len(data) not in (4, 8) or offset % len(data) or offset + len(data) > len(self._table):
            return
        with self.lock:
            self._table[offset : offset + len(data)] = data
            vector = offset // ENTRY_SIZE
            control = vector * ENTRY_SIZE + ENTRY_CONTROL
            # reserved bits of the control word stay zero
            self._table[control : control + 4] = bytes([self._table[control] & VECTOR_MASKED, 0, 0, 0])
            self._refresh(vector)

    def pending(self) -> bytes:
        """Return the bits of the vectors that wait, in words of 8 bytes."""
        bits = sum(self.group.is_pending(vector) << vector for vector in range(len(self.group)))
        return bits.to_bytes(len(self.pba), "little")

    def reset(self) -> None:
        """Mask everything and forget every message."""
        with self.lock:
            self._table[:] = EMPTY_ENTRY * self._count
            if isinstance(self.group, Stateful):
                self.lock.after(self.group.reset)  # type: ignore[attr-defined]  # ours have one
            self.refresh()

    def state(self) -> dict[str, Any]:
        """Return the table and what is pending."""
        return {**super().state(), "group": self.group.state() if isinstance(self.group, Stateful) else {}}

    def check_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the table and the group's own state, checked; raises as `restore`."""
        kinds = {**self.STATE, "group": PART}
        fields = load_fields(type(self).__name__, kinds, state, version=self.STATE_VERSION, others=())
        if isinstance(self.group, Stateful):
            self.group.check_state(fields["group"])
        else:
            load_fields("MsixCapability", {}, fields["group"], others=())
        return fields

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what a state says, raises `DeviceStateError`; `refresh` follows when the registers are back."""
        fields = self.check_state(state)
        if isinstance(self.group, Stateful):
            self.group.disable()
            self.group.restore(fields["group"])
        with self.lock:
            self._table[:] = fields["table"]


class MsixTable:
    """The table as a device."""

    def __init__(self, owner: MsixCapability) -> None:
        self.read = owner.table_read
        self.write = owner.table_write
        self._owner = owner

    def __len__(self) -> int:
        return ENTRY_SIZE * len(self._owner.group)


class MsixPendingBits:
    """The pending bits as a device; a guest cannot write them."""

    def __init__(self, owner: MsixCapability) -> None:
        self._owner = owner

    def __len__(self) -> int:
        return -(-len(self._owner.group) // 64) * 8

    def read(self, offset: int, buffer: memoryview) -> None:
        """Read the bits."""
        buffer[:] = self._owner.pending()[offset : offset + len(buffer)].ljust(len(buffer), b"\0")

    def write(self, offset: int, data: memoryview) -> None:
        """Ignore: software "should never write" them."""
