"""Where interrupts go: the table that KVM_SET_GSI_ROUTING replaces as a whole."""

from __future__ import annotations

import struct

from pyvmm_kvm.errors import StateError
from pyvmm_kvm.near import Exact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from typing_extensions import Buffer

_HEADER = struct.Struct("<II")
_ENTRY = struct.Struct("<IIII4I16x")
MAX_IRQ_ROUTES = 4096
_IRQCHIP, _MSI, _HV_SINT, _XEN = 1, 2, 4, 5
_NAMES = {_IRQCHIP: "irqchip", _MSI: "msi", _HV_SINT: "hv_sint", _XEN: "xen_evtchn"}
_VALID_DEVID = 1 << 0
_PIC_MASTER, _PIC_SLAVE, _IOAPIC = range(3)
_ISA_LINES, _PIC_PINS, _IOAPIC_PINS = 16, 8, 24
_TIMER, _CASCADE = 0, 2


class IrqRoute(Exact):
    """One route: interrupt `gsi` goes to a pin of an irqchip, or becomes a message."""

    __slots__ = ("flags", "gsi", "kind", "words")

    def __init__(self, gsi: int, kind: int, words: tuple[int, int, int, int], flags: int = 0) -> None:
        if len(words) != 4:
            raise ValueError(f"the route of GSI {gsi} has {len(words)} words, not 4")
        for number in (gsi, kind, flags, *words):
            # what the table has room for; a message's address has twice that and comes in two words
            if not 0 <= number <= 0xFFFFFFFF:
                raise ValueError(f"{number:#x} in the route of GSI {gsi} is no number of 32 bits")
        self.gsi = gsi
        self.kind = kind
        self.words = words
        self.flags = flags

    @classmethod
    def irqchip(cls, gsi: int, irqchip: int, pin: int) -> Self:
        """Route it to a pin of the PIC master (0), the PIC slave (1) or the IOAPIC (2)."""
        return cls(gsi, _IRQCHIP, (irqchip, pin, 0, 0))

    @classmethod
    def msi(cls, gsi: int, address: int, data: int, devid: int | None = None) -> Self:
        """Route it to a message with this address and data."""
        return cls(
            gsi, _MSI, (address & 0xFFFFFFFF, address >> 32, data, devid or 0), 0 if devid is None else _VALID_DEVID
        )

    @classmethod
    def hv_sint(cls, gsi: int, vcpu: int, sint: int) -> Self:
        """Route it to a Hyper-V synthetic interrupt."""
        return cls(gsi, _HV_SINT, (vcpu, sint, 0, 0))

    @classmethod
    def xen_evtchn(cls, gsi: int, port: int, vcpu: int, priority: int = 0xFFFFFFFF) -> Self:
        """Route it to a Xen event channel, two-level by default."""
        return cls(gsi, _XEN, (port, vcpu, priority, 0))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IrqRoute):
            return NotImplemented
        return (self.gsi, self.kind, self.words, self.flags) == (other.gsi, other.kind, other.words, other.flags)

    __hash__ = None  # type: ignore[assignment]  # it can change

    def __repr__(self) -> str:
        words = ", ".join(format(word, "#x") for word in self.words)
        return f"IrqRoute({self.gsi}, {_NAMES.get(self.kind, self.kind)}: {words})"


class IrqRouting(list[IrqRoute]):
    """The table, a list of `IrqRoute`.

    >>> table = IrqRouting([IrqRoute.irqchip(4, 2, 4), IrqRoute.msi(24, 0xfee00000, 0x4021)])
    >>> IrqRouting.from_bytes(bytes(table)) == table
    True
    """

    __slots__ = ()

    @classmethod
    def legacy(cls) -> Self:
        """Return what KVM starts with on x86: 16 ISA interrupts to PICs and IOAPIC, and IOAPIC pins 16 to 23."""
        table = cls()
        for gsi in range(_ISA_LINES):
            # the slave's cascade line is not routed, and the timer arrives at the IOAPIC's pin of that number
            if gsi != _CASCADE:
                pic = _PIC_MASTER if gsi < _PIC_PINS else _PIC_SLAVE
                table.append(IrqRoute.irqchip(gsi, pic, gsi % _PIC_PINS))
                table.append(IrqRoute.irqchip(gsi, _IOAPIC, _CASCADE if gsi == _TIMER else gsi))
        table.extend(IrqRoute.irqchip(gsi, _IOAPIC, gsi) for gsi in range(_ISA_LINES, _IOAPIC_PINS))
        return table

    def retain(self, keep: Callable[[IrqRoute], bool]) -> None:
        """Drop every route for which `keep` is false."""
        self[:] = filter(keep, self)

    def __bytes__(self) -> bytes:
        if len(self) > MAX_IRQ_ROUTES:
            raise StateError(f"{len(self)} routes; KVM takes {MAX_IRQ_ROUTES}")
        entries = (_ENTRY.pack(route.gsi, route.kind, route.flags, 0, *route.words) for route in self)
        return _HEADER.pack(len(self), 0) + b"".join(entries)

    @classmethod
    def from_bytes(cls, data: Buffer) -> Self:
        """Read a struct kvm_irq_routing with its entries."""
        view = memoryview(data).cast("B")
        count = _HEADER.unpack_from(view)[0] if len(view) >= _HEADER.size else MAX_IRQ_ROUTES + 1
        if count > MAX_IRQ_ROUTES or len(view) < _HEADER.size + count * _ENTRY.size:
            raise StateError(f"{len(view)} bytes do not hold the interrupt routes that they announce")
        table = cls()
        for index in range(count):
            gsi, kind, flags, _, *words = _ENTRY.unpack_from(view, _HEADER.size + index * _ENTRY.size)
            table.append(IrqRoute(gsi, kind, (words[0], words[1], words[2], words[3]), flags))
        return table
