"""What every KVM file descriptor shares: it closes once, refuses calls afterwards, and names the ioctl that failed."""

from __future__ import annotations

import os
from _warnings import warn

from pyvmm_kvm._kvm import ffi, lib
from pyvmm_kvm.errors import ClosedError, KvmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Protocol, Self, TypeAlias, TypeVar

    from pyvmm_kvm._kvm import CData
    from pyvmm_kvm.struct import Struct

    S = TypeVar("S", bound=Struct)

    class HasFileno(Protocol):
        """Anything that lends its descriptor."""

        def fileno(self) -> int:
            """Return its number."""

    FileLike: TypeAlias = int | HasFileno

NULL = ffi.NULL


def check_kind(fd: int, kind: str) -> None:
    """Raise ValueError where a descriptor is none of this kind, by the name that the kernel has for it.

    Where /proc does not say, it is believed.
    """
    try:
        name = os.readlink(f"/proc/self/fd/{fd}")
    except FileNotFoundError:
        if os.path.isdir("/proc/self/fd"):
            raise ValueError(f"descriptor {fd} is not open") from None
        return
    if not name.startswith(f"anon_inode:{kind}"):
        raise ValueError(f"descriptor {fd} is {name}, and not anon_inode:{kind}")


class Fd:
    """Owns one file descriptor. `with` closes it; `fileno()` lends it to selectors and to `os`.

    What subclasses make their methods of, and what reaches a call that has no method: `ioctl`, `ioctl_value`,
    `get_struct` and `set_struct`.
    """

    __slots__ = ("__weakref__", "_fd")

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the descriptor's number, still owned by this object."""
        if self._fd < 0:
            raise ClosedError(type(self).__name__, "fileno")
        return self._fd

    as_raw_fd = fileno

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._fd < 0

    def close(self) -> None:
        """Give the descriptor back; calling it again does nothing."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        # a failed __init__ leaves no number behind
        if getattr(self, "_fd", -1) >= 0:
            text = f"unclosed {self!r}"
            # before the warning, which a filter may turn into an exception
            self.close()
            warn(text, ResourceWarning, source=self, stacklevel=2)

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self._fd < 0 else f'fd={self._fd}'}>"

    def ioctl(self, name: str, argument: CData = NULL) -> int:
        """Call the ioctl of that name with a pointer (cffi data that the caller keeps alive) and return its result."""
        if self._fd < 0:
            raise ClosedError(type(self).__name__, name)
        result = lib.pyvmm_ioctl(self._fd, getattr(lib, name), argument)
        if result < 0:
            raise KvmError(-result, name)
        return result

    def ioctl_value(self, name: str, value: int = 0) -> int:
        """Call an ioctl whose argument is a number, or that has none, and return its result."""
        if self._fd < 0:
            raise ClosedError(type(self).__name__, name)
        result = lib.pyvmm_ioctl_value(self._fd, getattr(lib, name), value)
        if result < 0:
            raise KvmError(-result, name)
        return result

    def get_struct(self, name: str, kind: type[S]) -> S:
        """Return the structure that this ioctl fills."""
        value = kind()
        self.ioctl(name, value.cdata)
        return value

    def set_struct(self, name: str, kind: type[S], value: object) -> None:
        """Give a structure to this ioctl; any object with attributes named as in the header, and all, will do."""
        if not isinstance(value, kind):
            own = kind()
            own.replace(value)
            value = own
        self.ioctl(name, value.cdata)
