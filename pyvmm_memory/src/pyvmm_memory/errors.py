"""Everything this package raises: one tree, facts as attributes."""

from __future__ import annotations


class GuestMemoryError(Exception):
    """The root of every error of this package."""


class InvalidGuestAddress(GuestMemoryError, LookupError):
    """No region maps `address`."""

    def __init__(self, address: int) -> None:
        super().__init__(f"guest address {address:#x} is not mapped by any region")
        self.address = address


class InvalidInteger(GuestMemoryError, TypeError):
    """An address, a length or a value is no integer."""

    def __init__(self, value: object) -> None:
        super().__init__(f"{value!r} is not an integer: addresses, lengths and values are int or GuestAddress")
        self.value = value


class InvalidBuffer(GuestMemoryError, TypeError):
    """What was given is no contiguous buffer, or is not writable where bytes go into it."""


class HostAddressNotAvailable(GuestMemoryError):
    """The region has no memory that this process may touch."""


class ReadOnlyMemory(GuestMemoryError):
    """The mapping does not allow writing."""


class MemoryBusy(GuestMemoryError, RuntimeError):
    """Somebody has the right to replace the memory and does not give it back: the same thread, or another for long."""


class InvalidBackendAddress(GuestMemoryError, LookupError):
    """The bytes at `address` are mapped, but not all `length` of them by one region."""

    def __init__(self, address: int, length: int) -> None:
        super().__init__(f"{length} bytes at {address:#x} do not lie in one region: use get_slices, read or write")
        self.address = address
        self.length = length


class PartialBuffer(GuestMemoryError):
    """Only `completed` of `expected` bytes were transferred; that prefix was. `address` is the first that is missing.

    `address` is None where the other side of the transfer ended, and where nobody knows.
    """

    def __init__(self, expected: int, completed: int, address: int | None = None) -> None:
        why = "a hole or the end of the data follows"
        if address is not None:
            why = f"there is nothing at {address:#x}, where read and write stop and return the count"
        super().__init__(f"only {completed} of {expected} bytes transferred: {why}")
        self.expected = expected
        self.completed = completed
        self.address = address


class UnexpectedEof(PartialBuffer, EOFError):
    """The source ended, or the sink took no more, after `completed` of `expected` bytes."""

    def __init__(self, expected: int, completed: int) -> None:
        super().__init__(expected, completed)
        self.args = (f"the other side ended after {completed} of {expected} bytes",)


class InvalidSlice(GuestMemoryError, ValueError):
    """What stands between the brackets of `memory[start:stop]` is no range of addresses, or the data has not its size.

    Guest memory has holes, so an address is always said; iteration and `len` are about regions.
    """


class GuestAddressOverflow(GuestMemoryError, OverflowError):
    """`base + offset` leaves the 64-bit address space."""

    def __init__(self, base: int, offset: int) -> None:
        super().__init__(f"{base:#x} + {offset:#x} does not fit in 64 bits")
        self.base = base
        self.offset = offset


class Misaligned(GuestMemoryError, ValueError):
    """An atomic access needs `address` aligned to `alignment`."""

    def __init__(self, address: int, alignment: int) -> None:
        super().__init__(f"address {address:#x} is not aligned to {alignment} bytes")
        self.address = address
        self.alignment = alignment


class InvalidLength(GuestMemoryError, ValueError):
    """A length or size outside what the operation accepts."""

    def __init__(self, length: int) -> None:
        super().__init__(f"{length} is not a length this operation accepts")
        self.length = length


class OutOfBounds(InvalidBackendAddress, IndexError):
    """`addr` lies beyond the end of a slice of memory."""

    def __init__(self, addr: int, length: int = 0) -> None:
        GuestMemoryError.__init__(self, f"offset {addr:#x} is beyond the end of the slice")
        self.addr = self.address = addr
        self.length = length


class Overflow(InvalidBackendAddress, OverflowError):
    """`base + offset` is no 64-bit number."""

    def __init__(self, base: int, offset: int) -> None:
        GuestMemoryError.__init__(self, f"{base:#x} + {offset:#x} does not fit in 64 bits")
        self.base = self.address = base
        self.offset = self.length = offset


class TooBig(GuestMemoryError, OverflowError):
    """`nelements` of `size` bytes each are more than an address space holds."""

    def __init__(self, nelements: int, size: int) -> None:
        super().__init__(f"{nelements} elements of {size} bytes do not fit in an address space")
        self.nelements = nelements
        self.size = size


class NoMemoryRegion(GuestMemoryError):
    """A collection needs at least one region, or the named one is not in it."""


class MemoryRegionOverlap(GuestMemoryError):
    """Two regions claim the same guest addresses."""


class UnsortedMemoryRegions(GuestMemoryError):
    """Regions must be given in ascending order of address."""


class MemoryInUse(GuestMemoryError, BufferError):
    """A region cannot be unmapped while views of it live; release them (and close the VM) first."""


class MemoryClosed(GuestMemoryError, ValueError):
    """The region was closed."""


class InvalidRegion(GuestMemoryError, ValueError):
    """A region has no size, or does not fit in 64-bit addresses."""


class MmapRegionError(GuestMemoryError):
    """A host mapping cannot be made; the root of the reasons."""


class MmapFailed(MmapRegionError, OSError):
    """The host refused the mapping; `errno` says why, as mmap(2) does."""

    def __init__(self, error: OSError, what: str) -> None:
        super().__init__(error.errno, f"{what}: {error.strerror or error}")


class MapFixed(MmapRegionError, ValueError):
    """MAP_FIXED would replace whatever is at the address: reserve a range and build inside it instead."""


class InvalidPointer(MmapRegionError, ValueError):
    """A raw pointer does not start on a page."""


class InvalidOffsetLength(MmapRegionError, ValueError):
    """The offset in the file is negative, not on a page, or overflows with the length."""


class MappingPastEof(MmapRegionError, ValueError):
    """The file ends before the mapping does: touching the rest would kill the process with SIGBUS."""


class HostRefused(GuestMemoryError, OSError):
    """The host refused something about memory; `errno` says why, as the system call's manual does."""

    def __init__(self, number: int, what: str, cure: str = "") -> None:
        import os

        super().__init__(number, f"{what}: {os.strerror(number)}{f' ({cure})' if cure else ''}")


class InvalidSnapshot(GuestMemoryError, ValueError):
    """A file is no snapshot of memory, is damaged, or belongs to other memory."""
