"""A PCI bus: which function has which number."""

from __future__ import annotations

from pyvmm_device.bus import place
from pyvmm_device.errors import PciError, ResourceExhausted
from pyvmm_device.interrupt import SharedLine
from pyvmm_device.locks import Lock
from pyvmm_device.pci.config_space import HEADER_TYPE, MULTIFUNCTION
from pyvmm_device.state import check_parts, restore_parts, save_parts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from typing import Any, NoReturn

    from pyvmm_device.bus import BusRange, Claim
    from pyvmm_device.interrupt import LevelInterrupt, SetLevel
    from pyvmm_device.io_manager import IoManager
    from pyvmm_device.pci.function import PciFunction

SLOTS, FUNCTIONS = 32, 8


class PciBus:
    """Up to 32 devices with up to 8 functions each.

    Args:
        io: where BARs are registered.
        lines: the interrupt lines that INTA to INTD are wired to; pins are swizzled over them by device number, so
            that neighbours do not share one. Without any, functions only have messages.
        number: of the bus.
    """

    def __init__(self, io: IoManager, lines: Sequence[LevelInterrupt] = (), number: int = 0) -> None:
        self.io = io
        self._number = number
        self._lines = [SharedLine(line) for line in lines]
        self._functions: dict[tuple[int, int], PciFunction] = {}
        self._reserved: set[tuple[int, int]] = set()
        self._lock = Lock()  # of the two above: functions are attached and detached without it

    @property
    def number(self) -> int:
        """Its number, by which configuration accesses reach it."""
        return self._number

    def add(self, function: PciFunction, slot: int | None = None, number: int = 0) -> int:
        """Put a function on the bus and return its device number.

        Args:
            function: what to add; also while the guest runs, though it will only look when it is told (`PciHotplug`).
            slot: the device number, 0 to 31; None takes the lowest that is free.
            number: the function's number within the device; function 0 must be there first.

        Raises:
            PciError: the place is taken or there is none such.
            ResourceExhausted: all 32 are taken.
        """
        full = False
        with self._lock:
            taken = {*self._functions, *self._reserved}
            if slot is None:
                slot = next((slot for slot in range(SLOTS) if (slot, 0) not in taken), -1)
                full = slot < 0
            holder = self._functions.get((slot, number))
            exists = not number or (slot, 0) in self._functions
            possible = 0 <= slot < SLOTS and 0 <= number < FUNCTIONS
            free = possible and exists and (slot, number) not in taken
            if free:
                self._reserved.add((slot, number))
        if full:
            raise ResourceExhausted(f"PCI bus {self.number}", repr(function), list(self._functions.values()))
        if not free:
            self._refuse(slot, number, exists, holder)
        try:
            function.attach(self, slot, number)
            with self._lock:
                self._functions[slot, number] = function
                if number:
                    self._functions[slot, 0].config.data[HEADER_TYPE] |= MULTIFUNCTION
        finally:
            with self._lock:
                self._reserved.discard((slot, number))
        return slot

    def _refuse(self, slot: int, number: int, exists: bool, holder: PciFunction | None) -> NoReturn:
        """Say why a function cannot be at a place; without the lock, for the words are those of other functions."""
        if not (0 <= slot < SLOTS and 0 <= number < FUNCTIONS):
            raise PciError(f"{slot:#x}.{number}: a bus has devices 0 to 0x1f with functions 0 to 7")
        if not exists:
            raise PciError(f"{slot:02x}.{number}: guests look for it only where there is a function 0")
        raise PciError(f"{holder or 'another function'!r} is at {slot:02x}.{number} already")

    def input(self, slot: int, pin: int) -> SetLevel | None:
        """Return what sets the line of a device's pin (1 to 4), or None where there are no lines."""
        if not self._lines:
            return None
        line = self._lines[self.line_of(slot, pin)]
        input_ = line.attach()
        return lambda active: line.set(input_, active)

    def forwards(self, where: BusRange, io: bool) -> bool:  # noqa: ARG002 - a bus behind a bridge looks at them
        """Say whether an access to this range reaches this bus."""
        return True

    def find(self, number: int) -> PciBus | None:
        """Return the bus with a number: this one, or one behind its bridges, as the guest numbered them."""
        if number == self.number:
            return self
        for function in list(self._functions.values()):
            if function.secondary is not None and function.secondary.number <= number:
                found = function.secondary.find(number)
                if found is not None:
                    return found
        return None

    def line_of(self, slot: int, pin: int) -> int:
        """Return the index of the line that a device's pin (1 to 4) is wired to, for ACPI's _PRT or an MP table."""
        return (slot + pin - 1) % len(self._lines)

    def remove(self, slot: int) -> list[PciFunction]:
        """Take a device with all its functions from the bus and return them; its ranges and its line are free.

        Raises:
            PciError: there is none.
        """
        with self._lock:
            numbers = sorted(key for key in self._functions if key[0] == slot)
            if not numbers:
                raise PciError(f"there is no device {slot:#x} on bus {self.number}")
            removed = [self._functions.pop(key) for key in numbers]
        for function in removed:
            function.detach()
            function.config.data[HEADER_TYPE] &= ~MULTIFUNCTION
        return removed

    def get(self, slot: int, number: int = 0) -> PciFunction | None:
        """Return a function, or None."""
        return self._functions.get((slot, number))

    def __iter__(self) -> Iterator[tuple[int, int, PciFunction]]:
        return iter([(slot, number, function) for (slot, number), function in sorted(self._functions.items())])

    def __len__(self) -> int:
        return len(self._functions)

    def __bool__(self) -> bool:
        return True

    # the guest's side

    def config_read(self, devfn: int, offset: int, buffer: memoryview) -> None:
        """Read from the configuration space of a function; where there is none, ones."""
        function = self._functions.get((devfn >> 3, devfn & 7))
        if function is None or offset >= len(function.config):
            buffer[:] = b"\xff" * len(buffer)
        else:
            function.config_read(offset, buffer)

    def config_write(self, devfn: int, offset: int, data: memoryview) -> None:
        """Write to the configuration space of a function."""
        function = self._functions.get((devfn >> 3, devfn & 7))
        if function is not None and offset < len(function.config):
            function.config_write(offset, data)

    # reset and state

    def reset(self) -> None:
        """Reset every function."""
        for _, _, function in self:
            function.reset()

    def _places(self) -> dict[str, PciFunction]:
        return {f"{slot:02x}.{number}": function for slot, number, function in self}

    def state(self) -> dict[str, Any]:
        """Return the state of every function, by its place."""
        return save_parts("PciBus", self._places())

    def check_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the state of every function, checked; raises as `restore`."""
        return check_parts("PciBus", self._places(), state)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restore every function, or none where one refuses its state.

        Raises:
            DeviceStateError: it has other functions, or one of them refuses its state.
        """
        functions = self._places()
        self.check_state(state)
        for function in functions.values():
            # ranges may have changed places since
            function.unmap()
        try:
            restore_parts("PciBus", functions, state)
        finally:
            self.remap()

    def places(self) -> Iterator[tuple[Claim, BusRange | None]]:
        """Say where each range of each function should answer now."""
        for function in list(self._functions.values()):
            yield from function.places()

    def remap(self) -> None:
        """Let the ranges of all functions answer where the registers say now."""
        place(self.places)

    def __repr__(self) -> str:
        return f"<PciBus {self.number}: {', '.join(repr(function) for _, _, function in self) or 'empty'}>"
