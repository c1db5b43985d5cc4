"""Open an image without reading it: paths and files are mapped, buffers are viewed."""

from __future__ import annotations

import mmap
import os
import stat

from .errors import ImageEmpty, ImageNotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import TracebackType
    from typing import Protocol, Self

    from typing_extensions import Buffer

    class HasFileno(Protocol):
        """An open file."""

        def fileno(self) -> int:
            """Return the descriptor."""
            ...

    ImageLike = str | os.PathLike[str] | Buffer | HasFileno

MADV_POPULATE_READ = 22  # linux/mman.h since 5.14; Python names it nowhere


class Source:
    """A read-only view of an image: `view`, its `name` for messages, and `close()`."""

    __slots__ = ("_map", "compression", "name", "view")

    def __init__(self, image: ImageLike) -> None:
        self._map: mmap.mmap | None = None
        self.compression: str | None = None
        if isinstance(image, (str, os.PathLike)):
            self.name = os.fspath(image)
            try:
                # without O_NONBLOCK, a FIFO would let the caller wait for somebody to write
                fd = os.open(self.name, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            except OSError as error:
                raise ImageNotFound(
                    f"{self.name}: {error.strerror}; name a kernel image that this user can read", path=self.name
                ) from error
            try:
                self._open(fd)
            finally:
                os.close(fd)
        elif hasattr(image, "fileno"):
            self.name = str(getattr(image, "name", "<file>"))
            self._open(image.fileno())
        else:
            self.name = "<buffer>"
            self.view = memoryview(image).cast("B")
            self._refuse_empty()

    def _open(self, fd: int) -> None:
        status = os.fstat(fd)
        if stat.S_ISDIR(status.st_mode):
            raise ImageNotFound(f"{self.name}: is a directory; name the kernel image inside it", path=self.name)
        if not stat.S_ISREG(status.st_mode):
            raise ImageNotFound(f"{self.name}: is no regular file; copy the image to one", path=self.name)
        size = status.st_size
        self.view = memoryview(b"")
        if size:
            try:
                self._map = mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
            except OSError as error:
                raise ImageNotFound(f"{self.name}: cannot be mapped ({error.strerror}); name a regular file") from error
            self.view = memoryview(self._map)
        self._refuse_empty()

    def _refuse_empty(self) -> None:
        if not len(self.view):
            raise ImageEmpty(f"{self.name}: the file is empty; was its build or download interrupted?", path=self.name)

    def unpack(self) -> None:
        """Replace a compressed file's view by that of its content and set `compression`; leave others as they are.

        The content may have 16 times the size of the file. It lies in a mapping of its own, not on the heap. Raises
        InvalidHeader for damaged data and above the limit, UnsupportedCompression.
        """
        pieces = self._unpacked()
        if pieces is None:
            return
        from .decompression import bound

        content = mmap.mmap(-1, bound(len(self.view)), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        try:
            for piece in pieces:
                content.write(piece)
            size = content.tell()
            if size:
                content.resize(size)
        except BaseException:
            content.close()
            raise
        self.close()
        self._map = content
        self.view = memoryview(content)[:size]
        self._refuse_empty()

    def pieces(self) -> Iterator[bytes | memoryview]:
        """Return the content of the file, in one piece where it is not compressed; raises what `unpack` does."""
        return self._unpacked() or iter((self.view,))

    def _unpacked(self) -> Iterator[bytes] | None:
        from .formats import compression

        self.compression = compression(self.view)
        if self.compression is None:
            return None
        from .decompression import bound, unpack

        return unpack(self.view, self.compression, self.name, bound(len(self.view)))

    def populate(self) -> None:
        """Map all pages at once, which copies faster than one fault for every sixteen pages."""
        if self._map is not None:
            try:
                self._map.madvise(MADV_POPULATE_READ)
            except OSError:  # before Linux 5.14: the faults come one by one instead
                return

    def close(self) -> None:
        """Unmap; the `view` and its slices are dead afterwards."""
        self.view.release()
        if self._map is not None:
            self._map.close()
            self._map = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<Source {self.name}>"
