"""What the file descriptors of KVM have in common: one owner, calls by name, an end."""

from __future__ import annotations

import os
import sys

from pyvmm_kvm._kvm import ffi, lib
from pyvmm_kvm.errors import ClosedError, KvmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Self

    from typing_extensions import Buffer


class KvmFileDescriptor:
    """Owns one file descriptor of KVM.

    Closing it twice is fine. A call after that raises `ClosedError` and never reaches a recycled number.
    """

    __slots__ = ("_fd",)

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def fileno(self) -> int:
        """Return the file descriptor, which stays ours.

        Raises:
            ClosedError: it has been closed.
        """
        if self._fd < 0:
            raise ClosedError(f"{type(self).__name__} is closed")
        return self._fd

    def close(self) -> None:
        """Give the file descriptor back to the kernel; once is enough."""
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
        # getattr: __init__ may have failed before there was a descriptor
        if getattr(self, "_fd", -1) >= 0 and not sys.is_finalizing():
            import warnings

            warnings.warn(f"unclosed {self!r}", ResourceWarning, source=self, stacklevel=2)
            self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {'closed' if self._fd < 0 else f'fd={self._fd}'}>"

    def _call(self, name: str, value: int = 0) -> int:
        """Make a call whose argument is a number."""
        result = lib.pyvmm_ioctl_value(self.fileno(), getattr(lib, name), value)
        if result < 0:
            raise KvmError(name, -result)
        return result

    def _call_with(self, name: str, structure: Buffer) -> int:
        """Make a call whose argument is a structure, read or written in place."""
        result = lib.pyvmm_ioctl(self.fileno(), getattr(lib, name), ffi.from_buffer("char[]", structure))
        if result < 0:
            raise KvmError(name, -result)
        return result
