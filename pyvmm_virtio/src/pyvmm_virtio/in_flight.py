"""Requests that other threads work on, and the reset that must not return while one of them may touch guest memory."""

from __future__ import annotations

from threading import Condition

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType


class InFlight:
    """Counts who is about to read or write guest memory outside the device's lock.

    A worker wraps the part of its work that touches guest memory; a reset calls `drain`, after which no touch of an
    old request is under way, and none begins, because `VirtioDevice.is_current` is asked within:

    >>> in_flight = InFlight()
    >>> with in_flight:
    ...     pass  # if device.is_current(queue, epoch): os.preadv(...)
    >>> in_flight.drain()

    Nobody takes the device's lock within: `VirtioDevice.finish` comes after.
    """

    def __init__(self) -> None:
        self._changed = Condition()
        self._count = 0

    def __enter__(self) -> None:
        with self._changed:
            self._count += 1

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._count -= 1
            if not self._count:
                self._changed.notify_all()

    def __len__(self) -> int:
        return self._count

    def __bool__(self) -> bool:
        return True

    def drain(self) -> None:
        """Wait until nobody is within."""
        with self._changed:
            self._changed.wait_for(lambda: not self._count)
