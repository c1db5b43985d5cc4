"""The interrupt controller of a PC with local APICs: Intel 82093AA, which turns lines into messages.

A message is a write of 32 bits to an address of local APICs, as an MSI is: any hypervisor that can signal an MSI can
deliver it.

>>> ioapic = Ioapic(lambda address, data: print(f"{address:#x} {data:#x}"))
>>> ioapic.set_entry(4, 1 << 56 | 0x31)  # vector 0x31, edge, to the APIC with the id 1
>>> ioapic.line(4).trigger()
0xfee01000 0x31

Where the local APICs are in a kernel (KVM's split irqchip), that kernel has to know which vectors are level-triggered,
because only their end of interrupt is reported: `Ioapic.on_route` says what each input stands for from now on.

Source: Intel 82093AA data sheet (290566); the EOI register is that of version 0x20, as in the ICH family.
"""

from __future__ import annotations

from pyvmm_device.errors import InterruptError
from pyvmm_device.locks import DeferringLock
from pyvmm_device.state import Stateful, array, uint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

BASE = 0xFEC00000
"""Where a PC's first IOAPIC is."""
SIZE = 0x1000
INPUTS = 24

# direct registers
IOREGSEL, IOWIN, IOEOI = 0x00, 0x10, 0x40
# indirect registers
ID, VERSION, ARBITRATION, REDIRECTION = 0x00, 0x01, 0x02, 0x10

VERSION_82093AA = 0x11
VERSION_WITH_EOI = 0x20

# redirection entry
VECTOR = 0xFF
DELIVERY_MODE, DELIVERY_MODE_SHIFT = 0x700, 8
FIXED, LOWEST_PRIORITY, SMI, NMI, INIT, EXT_INT = 0, 1, 2, 4, 5, 7
LOGICAL = 1 << 11
DELIVERY_STATUS = 1 << 12
ACTIVE_LOW = 1 << 13
REMOTE_IRR = 1 << 14
LEVEL = 1 << 15
MASKED = 1 << 16
DESTINATION_SHIFT = 56
WRITABLE = 0xFF << DESTINATION_SHIFT | MASKED | LEVEL | ACTIVE_LOW | LOGICAL | DELIVERY_MODE | VECTOR

MESSAGE_ADDRESS = 0xFEE00000
MESSAGE_REDIRECTION_HINT = 1 << 3
MESSAGE_LEVEL_ASSERT = 1 << 14


def message(entry: int) -> tuple[int, int]:
    """Return the address and the data that a redirection entry stands for (Intel SDM 3A, 11.11)."""
    mode = entry >> DELIVERY_MODE_SHIFT & 7
    address = MESSAGE_ADDRESS | (entry >> DESTINATION_SHIFT) << 12
    if mode == LOWEST_PRIORITY:
        address |= MESSAGE_REDIRECTION_HINT
    if entry & LOGICAL:
        address |= 1 << 2
    data = entry & VECTOR | mode << 8
    if entry & LEVEL:
        data |= LEVEL | MESSAGE_LEVEL_ASSERT
    return address, data


class IoapicLine:
    """An input, a level interrupt; a rising edge counts where its entry is edge-triggered."""

    __slots__ = ("_ioapic", "input")

    def __init__(self, ioapic: Ioapic, number: int) -> None:
        self._ioapic = ioapic
        self.input = number

    def assert_(self) -> None:
        """Raise the line."""
        self._ioapic.set_line(self.input, True)

    def clear(self) -> None:
        """Lower the line."""
        self._ioapic.set_line(self.input, False)

    def trigger(self) -> None:
        """Raise and lower it: one edge."""
        self._ioapic.set_line(self.input, True)
        self._ioapic.set_line(self.input, False)

    def __repr__(self) -> str:
        return f"<IoapicLine {self.input}>"


class Ioapic(Stateful):
    """An IOAPIC with 24 inputs, to be registered with 4 KiB at `BASE`.

    Lines say whether a device asks for attention; the polarity that a driver programs is kept, but does not turn
    that round (nor does it in KVM): a guest that was told "active low" about an asserted line means the same.

    Args:
        send: called with the address and the data of each message, with no lock held.
        version: 0x11 as the chip, or 0x20 with an EOI register, which Linux uses when it is there.
        id_: the APIC id, 0 to 15, until the guest writes another.

    Attributes:
        on_route: called with the input and its address and data, or None and None while it is masked, whenever the
            guest changed that.
        on_end_of_interrupt: called with the input when the guest has ended its level interrupt, before the line is
            looked at again; who holds a line through an eventfd resamples it here.
    """

    STATE = {
        "select": uint(8),
        "id": uint(4),
        "arbitration": uint(4),
        "lines": uint(INPUTS),
        "entries": array(uint(64), INPUTS, INPUTS),
    }

    def __init__(self, send: Callable[[int, int], object], *, version: int = VERSION_WITH_EOI, id_: int = 0) -> None:
        if version not in (VERSION_82093AA, VERSION_WITH_EOI) or not 0 <= id_ < 16:
            raise InterruptError(f"no IOAPIC has version {version:#x} and id {id_}: 0x11 or 0x20, and 0 to 15")
        self.lock: DeferringLock = DeferringLock()
        self._send = send
        self.version = version
        self._first_id = id_
        self.on_route: Callable[[int, int | None, int | None], object] | None = None
        self.on_end_of_interrupt: Callable[[int], object] | None = None
        self._lines = 0
        self._power_on()

    def _power_on(self) -> None:
        self._select = 0
        self._id = self._arbitration = self._first_id
        self._entries = [MASKED] * INPUTS

    def reset(self) -> None:
        """Be as after power-on, all inputs masked; the lines stay as they are."""
        with self.lock:
            self._power_on()
            for number in range(INPUTS):
                self._tell_route(number)

    # the devices' side

    def line(self, number: int) -> IoapicLine:
        """Return an input, 0 to 23; raises `InterruptError` for others. A PC's timer, IRQ 0, is on input 2."""
        self._check(number)
        return IoapicLine(self, number)

    def _check(self, number: int) -> None:
        if not 0 <= number < INPUTS:
            raise InterruptError(f"an IOAPIC has inputs 0 to {INPUTS - 1}, not {number}")

    def set_line(self, number: int, active: bool) -> None:
        """Set whether an input asks for attention."""
        with self.lock:
            before = self._lines >> number & 1
            if active:
                self._lines |= 1 << number
                # "edge-sensitive interrupts signaled on a masked interrupt pin are ignored"
                if self._entries[number] & LEVEL or not before:
                    self._service(number)
            else:
                self._lines &= ~(1 << number)

    def _service(self, number: int) -> None:
        entry = self._entries[number]
        if entry & MASKED:
            return
        if entry & LEVEL:
            if entry & REMOTE_IRR:
                return
            # "This bit is set to 1 when local APIC(s) accept the level interrupt"; only these two modes send an EOI
            if entry >> DELIVERY_MODE_SHIFT & 7 in (FIXED, LOWEST_PRIORITY):
                self._entries[number] |= REMOTE_IRR
        self.lock.after(self._send, *message(entry))

    # the processor's side

    def end_of_interrupt(self, vector: int) -> None:
        """Take a local APIC's EOI message: level interrupts with this vector may come again (KVM_EXIT_IOAPIC_EOI)."""
        with self.lock:
            for number, entry in enumerate(self._entries):
                if entry & VECTOR != vector or not entry & LEVEL or not entry & REMOTE_IRR:
                    continue
                self._entries[number] &= ~REMOTE_IRR
                if self.on_end_of_interrupt is not None:
                    self.lock.after(self.on_end_of_interrupt, number)
                    self.lock.after(self._look_again, number)
                else:
                    self._look_again(number)

    def _look_again(self, number: int) -> None:
        with self.lock:
            if self._entries[number] & LEVEL and self._lines >> number & 1:
                self._service(number)

    def entry(self, number: int) -> int:
        """Return a redirection entry, 64 bits."""
        self._check(number)
        return self._entries[number]

    def set_entry(self, number: int, value: int) -> None:
        """Write a redirection entry, as a guest does in two halves; its read-only bits stay as they are."""
        self._check(number)
        with self.lock:
            before = self._entries[number]
            entry = value & WRITABLE | before & REMOTE_IRR
            if not entry & LEVEL:
                # drivers of a version without EOI register end an interrupt by making it an edge for a moment (Linux:
                # __eoi_ioapic_pin)
                entry &= ~REMOTE_IRR
            self._entries[number] = entry
            if (before ^ entry) & WRITABLE and not before & entry & MASKED:
                self._tell_route(number)
            if entry & LEVEL and self._lines >> number & 1:
                self._service(number)

    def _tell_route(self, number: int) -> None:
        if self.on_route is not None:
            entry = self._entries[number]
            self.lock.after(self.on_route, number, *((None, None) if entry & MASKED else message(entry)))

    # the guest's side

    def read(self, offset: int, buffer: memoryview) -> None:
        """Read a register; what there is none of reads as zero."""
        with self.lock:
            first = offset & ~0xF
            value = self._select if first == IOREGSEL else self._read_selected() if first == IOWIN else 0
        length = len(buffer)
        buffer[:] = (value >> 8 * (offset & 0xF) & (1 << 8 * length) - 1).to_bytes(length, "little")

    def write(self, offset: int, data: memoryview) -> None:
        """Write a register, which takes 32 bits: a shorter access is extended by zeros."""
        value = int.from_bytes(data[:4], "little")
        with self.lock:
            if offset == IOREGSEL:
                self._select = value & 0xFF
            elif offset == IOWIN:
                self._write_selected(value)
            elif offset == IOEOI and self.version >= VERSION_WITH_EOI:
                self.end_of_interrupt(value & VECTOR)

    def _read_selected(self) -> int:
        select = self._select
        if select == ID:
            return self._id << 24
        if select == VERSION:
            return (INPUTS - 1) << 16 | self.version
        if select == ARBITRATION:
            return self._arbitration << 24
        number = select - REDIRECTION >> 1
        if 0 <= number < INPUTS:
            return self._entries[number] >> (32 if select & 1 else 0) & 0xFFFFFFFF
        return 0

    def _write_selected(self, value: int) -> None:
        if self._select == ID:
            # "This register is loaded when IOAPICID is written": the arbitration id follows
            self._id = self._arbitration = value >> 24 & 0xF
            return
        number = self._select - REDIRECTION >> 1
        if 0 <= number < INPUTS:
            entry = self._entries[number]
            if self._select & 1:
                self.set_entry(number, entry & 0xFFFFFFFF | value << 32)
            else:
                self.set_entry(number, entry & ~0xFFFFFFFF | value)

    def _after_restore(self) -> None:
        for number, entry in enumerate(self._entries):
            self._entries[number] = entry & (WRITABLE | REMOTE_IRR)
            self._tell_route(number)
        for number, entry in enumerate(self._entries):
            if entry & LEVEL and self._lines >> number & 1:
                self._service(number)

    def __repr__(self) -> str:
        used = sum(not entry & MASKED for entry in self._entries)
        return f"<Ioapic {self._id}, version {self.version:#x}, {used} of {INPUTS} inputs unmasked>"
