"""A file descriptor that becomes readable at a moment: timerfd(2), which Python itself offers from 3.13 on."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

CLOCK_MONOTONIC = 1
TFD_TIMER_ABSTIME = 1
TFD_FLAGS = os.O_CLOEXEC | os.O_NONBLOCK


def create() -> int:
    """Return a new timerfd on the monotonic clock, not armed.

    Raises:
        OSError: the kernel refuses, as with too many open files.
    """
    fd: int = _libc().timerfd_create(CLOCK_MONOTONIC, TFD_FLAGS)
    return _checked(fd)


def set_moment(fd: int, when: int) -> None:
    """Let it become readable at a moment of `time.monotonic_ns`, at once if that has passed; 0 disarms it."""
    import ctypes

    # struct itimerspec: interval and value, each seconds and nanoseconds; a value of zero would disarm
    spec = (ctypes.c_long * 4)(0, 0, *divmod(max(0, when), 1_000_000_000))
    _checked(_libc().timerfd_settime(fd, TFD_TIMER_ABSTIME, spec, None))


def _libc() -> Any:  # noqa: ANN401 - ctypes has no better type for a library
    # imported here: it costs more than all of this package, and only loops within other loops need it
    import ctypes

    return ctypes.CDLL(None, use_errno=True)


def _checked(result: int) -> int:
    if result < 0:
        import ctypes

        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
