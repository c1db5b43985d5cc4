"""Resource descriptors: what `_CRS` says a device uses.

Source: ACPI 6.5, 6.4. Names are ASL's; flags that no device here needs are constants.
"""

from __future__ import annotations

from struct import pack

from pyvmm_loader.acpi.aml.data import Buffer
from pyvmm_loader.acpi.aml.term import AmlError, Term, raw_number

END_TAG = b"\x79\x00"
MEMORY_RANGE, IO_RANGE, BUS_RANGE = 0, 1, 2
MIN_FIXED, MAX_FIXED = 1 << 2, 1 << 3
CACHEABLE, READ_WRITE, ENTIRE_RANGE = 1 << 1, 1, 3


class ResourceTemplate(Buffer):
    """`ResourceTemplate () {...}`: descriptors and the tag that ends them."""

    __slots__ = ()

    def __init__(self, *descriptors: Term) -> None:
        for descriptor in descriptors:
            if not isinstance(descriptor, DESCRIPTORS):
                raise AmlError(f"{descriptor!r} is no resource descriptor")
        super().__init__(b"".join([bytes(descriptor) for descriptor in descriptors]) + END_TAG)


class Memory32Fixed(Term):
    """A memory range below 4 GiB."""

    __slots__ = ()

    def __init__(self, base: int, length: int, *, writable: bool = True) -> None:
        _fits(base, length, 32)
        if not length:
            raise AmlError("a memory range of no length; leave it out", length=length)
        super().__init__(pack("<BHBII", 0x86, 9, writable, base, length))


class Io(Term):
    """Ports, decoded with 16 address bits."""

    __slots__ = ()

    def __init__(self, base: int, length: int, alignment: int = 1) -> None:
        _fits(base, length, 16)
        if not 1 <= length <= 255:
            raise AmlError(f"{length} ports: this descriptor says 1 to 255; use WordIO for more", length=length)
        if alignment and base % alignment:
            raise AmlError(f"ports from {base:#x} on are not aligned to {alignment}, as they are said to be", base=base)
        super().__init__(pack("<BBHH", 0x47, 1, base, base) + raw_number(alignment, 1, "alignment") + bytes([length]))


class IrqNoFlags(Term):
    """ISA interrupts, edge-triggered, active high."""

    __slots__ = ()

    def __init__(self, *lines: int) -> None:
        super().__init__(pack("<BH", 0x22, _mask(lines)))


class Irq(Term):
    """ISA interrupts with their trigger and polarity."""

    __slots__ = ()

    def __init__(self, *lines: int, level: bool = False, low: bool = False, shared: bool = False) -> None:
        super().__init__(pack("<BHB", 0x23, _mask(lines), (not level) | low << 3 | shared << 4))


class Interrupt(Term):
    """Interrupts by their global number (GSI)."""

    __slots__ = ()

    def __init__(self, *lines: int, level: bool = False, low: bool = False, shared: bool = False) -> None:
        flags = 1 | (not level) << 1 | low << 2 | shared << 3  # bit 0: the device consumes it
        if not lines or len(set(lines)) < len(lines):
            raise AmlError(f"interrupts {list(lines)}: name some, each once", lines=lines)
        body = bytes([flags]) + raw_number(len(lines), 1, "how many interrupts:")
        body += b"".join([raw_number(line, 4, "interrupt") for line in lines])
        super().__init__(pack("<BH", 0x89, len(body)) + body)


class _Window(Term):
    """An address space descriptor: a range that a bridge hands down to what is behind it."""

    __slots__ = ()
    TAG, CODE, BITS, RANGE = 0, "", 0, 0

    def __init__(self, base: int, length: int, flags: int, granularity: int = 0, translation: int = 0) -> None:
        _fits(base, length, self.BITS)
        if not length:
            raise AmlError("a window of no length; leave it out", length=length)
        general = MIN_FIXED | MAX_FIXED  # producer, positive decode
        body = pack("<BBB", self.RANGE, general, flags)
        body += pack(f"<5{self.CODE}", granularity, base, base + length - 1, translation, length)
        super().__init__(pack("<BH", self.TAG, len(body)) + body)


class WordBusNumber(_Window):
    """PCI bus numbers."""

    __slots__ = ()
    TAG, CODE, BITS, RANGE = 0x88, "H", 16, BUS_RANGE

    def __init__(self, first: int, count: int) -> None:
        super().__init__(first, count, 0)


class WordIO(_Window):
    """A window of ports."""

    __slots__ = ()
    TAG, CODE, BITS, RANGE = 0x88, "H", 16, IO_RANGE

    def __init__(self, base: int, length: int) -> None:
        super().__init__(base, length, ENTIRE_RANGE)


class DWordIO(_Window):
    """A window of ports, with addresses of 32 bits."""

    __slots__ = ()
    TAG, CODE, BITS, RANGE = 0x87, "I", 32, IO_RANGE

    def __init__(self, base: int, length: int) -> None:
        super().__init__(base, length, ENTIRE_RANGE)


class DWordMemory(_Window):
    """A window of memory below 4 GiB."""

    __slots__ = ()
    TAG, CODE, BITS, RANGE = 0x87, "I", 32, MEMORY_RANGE

    def __init__(self, base: int, length: int, *, cacheable: bool = False) -> None:
        super().__init__(base, length, READ_WRITE | (CACHEABLE if cacheable else 0))


class QWordMemory(_Window):
    """A window of memory anywhere."""

    __slots__ = ()
    TAG, CODE, BITS, RANGE = 0x8A, "Q", 64, MEMORY_RANGE

    def __init__(self, base: int, length: int, *, cacheable: bool = False) -> None:
        super().__init__(base, length, READ_WRITE | (CACHEABLE if cacheable else 0))


def _fits(base: int, length: int, bits: int) -> None:
    # the descriptor has a field for the length as well, so a range as long as the address space cannot be said
    if base < 0 or not 0 <= length < 1 << bits or base + length > 1 << bits:
        raise AmlError(f"{base:#x} with {length:#x} bytes does not fit {bits} address bits", base=base, length=length)


def _mask(lines: tuple[int, ...]) -> int:
    if not lines or len(set(lines)) < len(lines):
        raise AmlError(f"ISA interrupts {list(lines)}: name some, each once", lines=lines)
    mask = 0
    for line in lines:
        if not 0 <= line < 16:
            raise AmlError(f"ISA interrupt {line}: there are 0 to 15; use Interrupt for others", line=line)
        mask |= 1 << line
    return mask


DESCRIPTORS = (Memory32Fixed, Io, IrqNoFlags, Irq, Interrupt, _Window)
"""What may stand in a template."""
