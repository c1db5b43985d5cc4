"""Everything this package raises: one tree, facts as attributes."""

from __future__ import annotations


class GuestMemoryError(Exception):
    """The root of every error of this package."""


class InvalidGuestAddress(GuestMemoryError, LookupError):
    """No region maps `address`."""

    def __init__(self, address: int) -> None:
        super().__init__(f"guest address {address:#x} is not mapped by any region")
        self.address = address


class InvalidBackendAddress(GuestMemoryError, LookupError):
    """The bytes at `address` are mapped, but not all `length` of them by one region."""

    def __init__(self, address: int, length: int) -> None:
        super().__init__(f"{length} bytes at {address:#x} do not lie in one region: use get_slices, read or write")
        self.address = address
        self.length = length


class PartialBuffer(GuestMemoryError):
    """Only `completed` of `expected` bytes were transferred; that prefix was."""

    def __init__(self, expected: int, completed: int) -> None:
        super().__init__(f"only {completed} of {expected} bytes transferred: a hole or the end of the data follows")
        self.expected = expected
        self.completed = completed


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
