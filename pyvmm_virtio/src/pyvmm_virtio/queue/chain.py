"""A chain of descriptors: one request of a driver, copied out of the ring once and checked."""

from __future__ import annotations

from pyvmm_virtio.constants.ring import VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE
from pyvmm_virtio.queue.buffers import Reader, Writer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from pyvmm_virtio.memory import GuestMemory

    RawDescriptor = tuple[int, int, int, int]


class Descriptor(tuple):  # type: ignore[type-arg] # four numbers; typing.NamedTuple would import typing at start-up
    """One buffer: where it is, how long, and whether the device reads or writes it.

    Args:
        addr: its guest address.
        len: its length in bytes.
        flags: ``VRING_DESC_F_...``.
        next: the next descriptor in a split ring, the buffer id in a packed one.
    """

    __slots__ = ()

    def __new__(cls, addr: int, len: int, flags: int = 0, next: int = 0) -> Descriptor:  # noqa: A002 - the field's names
        """Make one; the arguments are the class's."""
        return super().__new__(cls, (addr, len, flags, next))

    @property
    def addr(self) -> int:
        """The guest address."""
        return self[0]  # type: ignore[no-any-return]

    @property
    def len(self) -> int:
        """The length in bytes."""
        return self[1]  # type: ignore[no-any-return]

    @property
    def flags(self) -> int:
        """``VRING_DESC_F_...``."""
        return self[2]  # type: ignore[no-any-return]

    @property
    def next(self) -> int:
        """The next descriptor's index, or the buffer id in a packed ring."""
        return self[3]  # type: ignore[no-any-return]

    def is_write_only(self) -> bool:
        """Say whether the device writes it; otherwise it reads it."""
        return bool(self[2] & VRING_DESC_F_WRITE)

    def has_next(self) -> bool:
        """Say whether another follows."""
        return bool(self[2] & VRING_DESC_F_NEXT)

    def refers_to_indirect_table(self) -> bool:
        """Say whether it stands for a table of others; none of these is in a chain."""
        return bool(self[2] & VRING_DESC_F_INDIRECT)

    def __repr__(self) -> str:
        return f"Descriptor(addr={self[0]:#x}, len={self[1]}, flags={self[2]:#x}, next={self[3]})"


class DescriptorChain:
    """The buffers of one request, in order, those of an indirect table included.

    It is a copy: a driver that changes its descriptors afterwards changes nothing here.

    Attributes:
        head_index: what `Queue.add_used` takes to give it back: the first descriptor's index, or the buffer id.
        queue_index: the queue it came from.
        length: the bytes of all its buffers, which may overlap and be more than memory has.
        raw: the descriptors as tuples (addr, len, flags, next), for those in a hurry.
    """

    __slots__ = ("head_index", "length", "queue_index", "raw")

    def __init__(
        self, head_index: int, raw: list[RawDescriptor], queue_index: int = 0, length: int | None = None
    ) -> None:
        self.head_index = head_index
        self.raw = raw
        self.queue_index = queue_index
        self.length = sum(each[1] for each in raw) if length is None else length

    def __iter__(self) -> Iterator[Descriptor]:
        for raw in self.raw:
            yield Descriptor(*raw)

    def __len__(self) -> int:
        return len(self.raw)

    def __bool__(self) -> bool:
        return True

    def readable(self) -> Iterator[Descriptor]:
        """Yield the buffers that the device reads."""
        return (descriptor for descriptor in self if not descriptor[2] & VRING_DESC_F_WRITE)

    def writable(self) -> Iterator[Descriptor]:
        """Yield the buffers that the device writes."""
        return (descriptor for descriptor in self if descriptor[2] & VRING_DESC_F_WRITE)

    def reader(self, memory: GuestMemory) -> Reader:
        """Read the readable buffers as one stream; raises InvalidBuffer where one is not in memory."""
        return Reader(memory, self)

    def writer(self, memory: GuestMemory) -> Writer:
        """Write the writable buffers as one stream; raises InvalidBuffer where one is not in memory."""
        return Writer(memory, self)

    def __repr__(self) -> str:
        return f"<DescriptorChain {self.head_index} of queue {self.queue_index}: {list(self)}>"
