"""Open an image without reading it: paths and files are mapped, buffers are viewed."""

from __future__ import annotations

import mmap
import os

from .errors import ImageEmpty, ImageNotFound

TYPE_CHECKING = False
if TYPE_CHECKING:
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
                fd = os.open(self.name, os.O_RDONLY | os.O_CLOEXEC)
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
        if os.path.isdir(self.name):
            raise ImageNotFound(f"{self.name}: is a directory; name the kernel image inside it", path=self.name)
        size = os.fstat(fd).st_size
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

    def unpack(self, limit: int | None = None) -> None:
        """Replace a compressed file's view by that of its content and set `compression`; leave others as they are.

        `limit` is the largest size in bytes; by default 16 times that of the file. Raises InvalidHeader for damaged
        data and above the limit, UnsupportedCompression.
        """
        from .formats import compression

        name = compression(self.view)
        if name is None:
            return
        from .decompression import bound, unpack

        most = bound(len(self.view))
        content = unpack(self.view, name, self.name, most if limit is None else min(limit, most))
        self.close()
        self.view = memoryview(content)
        self.compression = name
        self._refuse_empty()

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
