"""Dirty bitmaps: one bit for each page, set by every write, and slices of them that know where they start."""

from __future__ import annotations

import mmap

from pyvmm_memory.address import U64_MAX, as_int
from pyvmm_memory.errors import InvalidLength

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any, Protocol, Self, TypeAlias

    class Bitmap(Protocol):
        """Anything that records writes by their offset in bytes."""

        def mark_dirty(self, offset: int, length: int) -> None:
            """Record a write of `length` bytes at `offset`."""
            ...

        def dirty_at(self, offset: int) -> bool:
            """Say whether the page of `offset` was written."""
            ...

        def slice_at(self, offset: int) -> Bitmap:
            """Return the same bitmap, seen from `offset` on."""
            ...

    class WithLen(Protocol):
        """A kind of bitmap that can be made for a size."""

        def with_len(self, size: int, /) -> Bitmap:
            """Return a bitmap for `size` bytes."""
            ...

    NewBitmap: TypeAlias = WithLen | Callable[[int], Bitmap]


def new_bitmap(kind: NewBitmap, size: int) -> Bitmap:
    """Return a bitmap of `kind` for `size` bytes."""
    make: Any = getattr(kind, "with_len", kind)
    made: Bitmap = make(size)
    return made


class BitmapSlice:
    """A bitmap seen from `base` on. Slices of slices keep absolute offsets, which wrap at 64 bits."""

    __slots__ = ("base", "inner")

    def __init__(self, inner: PlainBitmap, base: int) -> None:
        self.inner = inner
        self.base = base & U64_MAX

    def mark_dirty(self, offset: int, length: int) -> None:
        """Record a write of `length` bytes at `offset` of this slice."""
        self.inner.mark_dirty((self.base + offset) & U64_MAX, length)

    def dirty_at(self, offset: int) -> bool:
        """Say whether the page of `offset` of this slice was written."""
        return self.inner.dirty_at((self.base + offset) & U64_MAX)

    def slice_at(self, offset: int) -> BitmapSlice:
        """Return the same bitmap, seen from `offset` of this slice on."""
        return BitmapSlice(self.inner, self.base + offset)

    def __repr__(self) -> str:
        return f"<BitmapSlice from {self.base:#x} of {self.inner!r}>"


# Rust tells a borrowed slice from a counted one; here every reference counts.
RefSlice = ArcSlice = BitmapSlice


class PlainBitmap:
    """A bitmap for one thread, in Python: two threads that mark pages of one word may lose a mark.

    It covers `byte_size` bytes in pages of `page_size`, one bit each; the last page may be shorter.

    Marking nothing marks nothing, what lies beyond the end is ignored, and a range ends at 2**64 at the latest.
    Raises InvalidLength for a negative size or a page size that is not positive.
    """

    __slots__ = ("_byte_size", "_page_size", "_pages", "_words")

    def __init__(self, byte_size: int, page_size: int = mmap.PAGESIZE) -> None:
        byte_size, page_size = as_int(byte_size), as_int(page_size)
        if byte_size < 0 or page_size <= 0:
            raise InvalidLength(byte_size if byte_size < 0 else page_size)
        self._byte_size = byte_size
        self._page_size = page_size
        self._pages = -(-byte_size // page_size)
        self._words = bytearray(8 * -(-self._pages // 64))
        self._bound()

    def _bound(self) -> None:
        """Take up words that were replaced."""

    @classmethod
    def with_len(cls, size: int) -> Self:
        """Return a bitmap for `size` bytes by the host's pages."""
        return cls(size)

    def _change(self, first: int, last: int, dirty: bool) -> None:
        """Set or clear the bits from `first` to `last`, both within the bitmap."""
        words = self._words
        for index in range(first >> 3, (last >> 3) + 1):
            low = first & 7 if index == first >> 3 else 0
            high = last & 7 if index == last >> 3 else 7
            mask = (1 << high + 1) - (1 << low)
            words[index] = words[index] | mask if dirty else words[index] & ~mask

    def _pages_of(self, addr: int, length: int) -> tuple[int, int] | None:
        addr, length = as_int(addr), as_int(length)
        if length < 0 or addr < 0:
            raise InvalidLength(min(addr, length))
        if length == 0 or not self._pages:
            return None
        first = addr // self._page_size
        last = min(addr + length - 1, U64_MAX) // self._page_size
        return (first, min(last, self._pages - 1)) if first < self._pages else None

    def set_addr_range(self, start_addr: int, length: int) -> None:
        """Set the bits of every page that `length` bytes at `start_addr` touch."""
        pages = self._pages_of(start_addr, length)
        if pages is not None:
            self._change(*pages, dirty=True)

    def reset_addr_range(self, start_addr: int, length: int) -> None:
        """Clear the bits of every page that `length` bytes at `start_addr` touch."""
        pages = self._pages_of(start_addr, length)
        if pages is not None:
            self._change(*pages, dirty=False)

    def mark_dirty(self, offset: int, length: int) -> None:
        """Record a write: the same as `set_addr_range`."""
        self.set_addr_range(offset, length)

    def dirty_at(self, offset: int) -> bool:
        """Say whether the page of `offset` was written."""
        return self.is_addr_set(offset)

    def slice_at(self, offset: int) -> BitmapSlice:
        """Return the same bitmap, seen from `offset` on."""
        return BitmapSlice(self, offset)

    def set_bit(self, index: int) -> None:
        """Set one bit; beyond the end is ignored."""
        if 0 <= index < self._pages:
            self._change(index, index, dirty=True)

    def reset_bit(self, index: int) -> None:
        """Clear one bit; beyond the end is ignored."""
        if 0 <= index < self._pages:
            self._change(index, index, dirty=False)

    def is_bit_set(self, index: int) -> bool:
        """Say whether a bit is set; beyond the end none is."""
        return 0 <= index < self._pages and bool(self._words[index >> 3] >> (index & 7) & 1)

    def is_addr_set(self, addr: int) -> bool:
        """Say whether the page of `addr` is marked."""
        return self.is_bit_set(addr // self._page_size)

    def __len__(self) -> int:
        """Return how many bits, one for each page."""
        return self._pages

    def byte_size(self) -> int:
        """Return how many bytes of memory it covers."""
        return self._byte_size

    def page_size(self) -> int:
        """Return how many bytes one bit covers."""
        return self._page_size

    def enlarge(self, additional_size: int) -> None:
        """Cover `additional_size` bytes more, not marked. Nobody else may use the bitmap meanwhile."""
        if additional_size < 0:
            raise InvalidLength(additional_size)
        self._byte_size += additional_size
        self._pages = -(-self._byte_size // self._page_size)
        self._words = self._words + bytearray(8 * -(-self._pages // 64) - len(self._words))
        self._bound()

    def get_and_reset(self) -> list[int]:
        """Return the bits in words of 64, and clear them."""
        taken = memoryview(bytes(self._words)).cast("Q").tolist()
        self._words[:] = bytes(len(self._words))
        return taken

    def reset(self) -> None:
        """Clear every bit."""
        if self._pages:
            self._change(0, self._pages - 1, dirty=False)

    def merge(self, words: object) -> None:
        """Set what is set in `words`, as `get_and_reset` and KVM's dirty log give them: 64 pages each.

        The pages of both must be of one size.
        """
        for first, last in runs(words, self._pages):  # type: ignore[arg-type] # a list or a view of 64-bit items
            self._change(first, last - 1, dirty=True)

    def dirty_ranges(self) -> Iterator[tuple[int, int]]:
        """Yield the marked bytes as `(offset, length)`, runs of pages together, as they are now."""
        copy = memoryview(bytes(self._words)).cast("Q")
        for first, last in runs(copy, self._pages):
            start = first * self._page_size
            yield start, min(last * self._page_size, self._byte_size) - start

    def __repr__(self) -> str:
        marked = sum(map(int.bit_count, self._words))
        return f"<{type(self).__name__} {marked} of {self._pages} pages of {self._page_size:#x} bytes>"


class AtomicBitmap(PlainBitmap):
    """A bitmap for every thread, in C too: each bit is set, cleared and taken in one atomic step."""

    __slots__ = ("_atomic", "_ffi", "_lib", "_pointer")

    def _bound(self) -> None:
        from pyvmm_memory._memory import ffi, lib

        self._ffi = ffi
        self._lib = lib
        self._atomic = lib.pyvmm_bitmap_change
        # keeps the words where they are
        self._pointer = ffi.from_buffer("uint64_t[]", self._words)

    def _change(self, first: int, last: int, dirty: bool) -> None:
        self._atomic(self._pointer, first, last, dirty)

    def get_and_reset(self) -> list[int]:
        """Return the bits in words of 64, each taken and cleared in one atomic step."""
        count = len(self._words) // 8
        taken = bytearray(8 * count)
        self._lib.pyvmm_bitmap_take(self._pointer, self._ffi.from_buffer(taken), count)
        return memoryview(taken).cast("Q").tolist()

    def pointer(self) -> object:
        """Return the words as C sees them, valid as long as this bitmap lives and is not enlarged."""
        return self._pointer

    def clone(self) -> AtomicBitmap:
        """Return another bitmap with the same bits."""
        other = AtomicBitmap(self._byte_size, self._page_size)
        other.merge(memoryview(bytes(self._words)).cast("Q"))
        return other


def runs(words: memoryview | list[int], pages: int) -> Iterator[tuple[int, int]]:
    """Yield the runs of set bits in words of 64 as `(first, past the last)`, up to `pages` bits."""
    start = -1
    for number, word in enumerate(words):
        if word == 0:
            if start >= 0:
                yield start, min(64 * number, pages)
                start = -1
            continue
        if word == U64_MAX:
            start = 64 * number if start < 0 else start
            continue
        for bit in range(64):
            if word >> bit & 1:
                start = 64 * number + bit if start < 0 else start
            elif start >= 0:
                yield start, min(64 * number + bit, pages)
                start = -1
    if start >= 0:
        yield start, pages
