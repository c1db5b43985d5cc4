"""Several devices in one range, as the parts of a BAR."""

from __future__ import annotations

from pyvmm_device.bus import Bus, BusRange
from pyvmm_device.state import check_parts, restore_parts, save_parts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any, Protocol

    from pyvmm_device.bus import Device

    class Part(Device, Protocol):
        """A device that knows its size."""

        def __len__(self) -> int: ...


class Composite:
    """A device made of others, each at an offset; between them reads give zeros and writes are dropped.

    Args:
        size: of the whole, in bytes.
        parts: devices that know their size, by offset.

    Raises:
        DeviceOverlap: two of them share bytes.
    """

    def __init__(self, size: int, parts: Mapping[int, Part]) -> None:
        self._size = size
        self.parts = Bus(64, "composite")
        for offset, part in parts.items():
            self.parts.register(BusRange(offset, len(part)), part)

    def __len__(self) -> int:
        return self._size

    def read(self, offset: int, buffer: memoryview) -> None:
        """Read from the part that lies there."""
        found = self.parts.device(offset)
        if found is None or offset + len(buffer) - 1 not in found[0]:
            buffer[:] = bytes(len(buffer))
            return
        returned = found[1].read(offset - found[0].base, buffer)  # type: ignore[func-returns-value]
        if returned is not None:
            self.parts.returned(found[1], returned)

    def write(self, offset: int, data: memoryview) -> None:
        """Write to the part that lies there."""
        found = self.parts.device(offset)
        if found is not None and offset + len(data) - 1 in found[0]:
            found[1].write(offset - found[0].base, data)

    def reset(self) -> None:
        """Reset the parts that can be reset."""
        for part in self._stateful().values():
            reset = getattr(part, "reset", None)
            if reset is not None:
                reset()

    def state(self) -> dict[str, Any]:
        """Return the state of each part that has one, by its offset."""
        return save_parts("Composite", self._stateful())

    def check_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state of each part, checked; raises as `restore`."""
        return check_parts("Composite", self._stateful(), state)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore each part that has a state, or none where one refuses it.

        Raises:
            DeviceStateError: it is of other parts, or a part refuses its own.
        """
        restore_parts("Composite", self._stateful(), state)

    def _stateful(self) -> dict[str, Any]:
        return {f"{where.base:#x}": part for where, part in self.parts if hasattr(part, "restore")}

    def __repr__(self) -> str:
        return f"<Composite of {len(self.parts)} parts>"
