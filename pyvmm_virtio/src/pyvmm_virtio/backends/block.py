"""What a disk has to be able to do for the block device, and the numbers a guest may ask about it."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    Done = Callable[[int], object]
    """Called once with 0, or with an errno."""

    class BlockBackend(Protocol):
        """A disk. Offsets and lengths are bytes; every call does all of it or raises OSError."""

        size: int
        read_only: bool
        topology: Topology
        can_discard: bool

        def readv(self, views: Sequence[memoryview], offset: int) -> None:
            """Fill all views from `offset` on."""
            ...

        def writev(self, views: Sequence[memoryview], offset: int) -> None:
            """Write all views to `offset`; it may stay in a cache until `flush`."""
            ...

        def flush(self) -> None:
            """Make everything that was written survive a loss of power."""
            ...

        def discard(self, offset: int, length: int) -> None:
            """Give the storage back if that is possible; what is read there afterwards is undefined."""
            ...

        def write_zeroes(self, offset: int, length: int, unmap: bool) -> None:
            """Make it read as zeros; `unmap` allows to give the storage back."""
            ...

        def refresh(self) -> int:
            """Look again how large the disk is; returns `size`."""
            ...

        def close(self) -> None:
            """Release it; idempotent."""
            ...

    class AsyncBlockBackend(BlockBackend, Protocol):
        """A disk that works on many requests at once; its replies come by a file descriptor.

        The descriptor of `fileno` stays open until `close`, also when there is nothing to come from it any more.
        """

        def submit(self, op: int, views: Sequence[memoryview], offset: int, length: int, done: Done) -> object:
            """Begin one request: `op` is READ, WRITE, FLUSH, DISCARD, ZERO or ZERO_UNMAP; returns what `cancel` takes.

            `done` is called from `on_ready`, `wait` or `drain`, or from here before this returns.
            """
            ...

        def cancel(self, request: object) -> bool:
            """Give a request up.

            Returns true where that is done: its memory is let go, nothing further is done for it, and its `done` is not
            called. What the disk has been told already may still be done there, but before all that is submitted
            later. Returns false where it is done already, or is in hands that nobody can take it from: then `done` is
            called when they let go, after the piece at which they are.
            """
            ...

        def fileno(self) -> int:
            """Return what is readable when `on_ready` has something to do, or -1 where nothing will come any more."""
            ...

        def wants_write(self) -> bool:
            """Say whether `on_ready` also waits for the descriptor to take more."""
            ...

        def on_ready(self) -> None:
            """Send what is left to send, take the replies that have arrived, and call their `done`.

            That is bounded: where there is more, the descriptor stays readable.
            """
            ...

        def wait(self, seconds: float) -> bool:
            """Do what `on_ready` does until nothing is under way, but for so long at most; returns whether it is so."""
            ...

        def drain(self, seconds: float) -> None:
            """Return once nothing is under way any more. What takes longer is given up, and the disk with it."""
            ...


READ, WRITE, FLUSH, DISCARD, ZERO, ZERO_UNMAP = range(6)
PIECE = 1 << 20
"""The most bytes that are moved in one go: a larger request is cut, so that it can be left, and others have a turn."""
RANGE_PIECE = 1 << 23
"""The same for what is discarded or made zeros, which costs less for each byte."""


class Topology:
    """How a disk likes to be used, all in bytes.

    Attributes:
        logical_block_size: the smallest unit of access, at least 512.
        physical_block_size: the smallest unit that is written without reading first.
        minimum_io_size: what a request should be a multiple of; 0 where nobody said.
        optimal_io_size: what a request should be at best; 0 where nobody said.
        discard_alignment: what discards should be a multiple of.
    """

    __slots__ = (
        "discard_alignment",
        "logical_block_size",
        "minimum_io_size",
        "optimal_io_size",
        "physical_block_size",
    )

    def __init__(
        self,
        logical_block_size: int = 512,
        physical_block_size: int = 4096,
        minimum_io_size: int = 0,
        optimal_io_size: int = 0,
        discard_alignment: int = 4096,
    ) -> None:
        self.logical_block_size = max(512, logical_block_size)
        self.physical_block_size = max(self.logical_block_size, physical_block_size)
        self.minimum_io_size = minimum_io_size
        self.optimal_io_size = optimal_io_size
        self.discard_alignment = discard_alignment

    def __repr__(self) -> str:
        return f"Topology({', '.join(f'{name}={getattr(self, name)}' for name in self.__slots__)})"


def cut(views: list[memoryview], count: int) -> list[memoryview]:
    """Take the first `count` bytes off `views`, and return them.

    >>> views = [memoryview(b"ab"), memoryview(b"cdef")]
    >>> b"".join(cut(views, 3)), b"".join(views)
    (b'abc', b'def')
    """
    taken: list[memoryview] = []
    whole = 0
    for view in views:
        if len(view) > count:
            if count:
                taken.append(view[:count])
                views[whole] = view[count:]
            break
        if len(view):
            taken.append(view)
        count -= len(view)
        whole += 1
    del views[:whole]
    return taken


def advance(views: Sequence[memoryview], count: int) -> list[memoryview]:
    """Return what is left of `views` behind their first `count` bytes."""
    rest: list[memoryview] = []
    for view in views:
        if count >= len(view):
            count -= len(view)
        elif count:
            rest.append(view[count:])
            count = 0
        else:
            rest.append(view)
    return rest
