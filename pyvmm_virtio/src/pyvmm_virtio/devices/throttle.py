"""A queue that has to wait: for a rate limit, and then for nothing but time."""

from __future__ import annotations

from pyvmm_virtio.errors import VirtioUsageError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from pyvmm_device import EventLoop
    from pyvmm_virtio.device import VirtioDevice
    from pyvmm_virtio.rate_limiter import RateLimiter


class Throttle:
    """Lets requests of a device through at a rate, and has their queues looked at again in time.

    Args:
        device: the one that has the queues.
        limiter: the rate, or None for none.
        loop: where to wait.

    Raises:
        VirtioUsageError: there is a rate, and no loop to wait in.
    """

    __slots__ = ("_device", "_limiter", "_loop", "_waiting")

    def __init__(self, device: VirtioDevice, limiter: RateLimiter | None, loop: EventLoop | None) -> None:
        if limiter is not None and loop is None:
            raise VirtioUsageError("a rate limit is a time to wait for: give the event loop in which to wait")
        self._device = device
        self._limiter = limiter
        self._loop = loop
        self._waiting: set[int] = set()

    def __bool__(self) -> bool:
        return self._limiter is not None

    def admit(self, index: int, length: int) -> bool:
        """Pay for a request of `length` bytes; where there is not enough the queue is kicked when there is."""
        if self._limiter is None or self._loop is None:
            return True
        nanoseconds = self._limiter.take(length)
        if nanoseconds:
            self.later(index, nanoseconds / 1e9)
        return not nanoseconds

    def state(self) -> dict[str, Any] | None:
        """Return what is left of the rate, or None without one."""
        return self._limiter.state() if self._limiter is not None else None

    def check_state(self, state: Mapping[str, Any] | None) -> None:
        """Raise DeviceStateError unless it is what was left of some rate, or None."""
        if state is not None:
            from pyvmm_virtio.rate_limiter import RateLimiter

            (self._limiter or RateLimiter()).check_state(state)

    def restore(self, state: Mapping[str, Any] | None) -> None:
        """Go on with what was left of the rate, where both then and now there is one. Raises DeviceStateError."""
        if self._limiter is not None and state is not None:
            self._limiter.restore(state)

    def later(self, index: int, seconds: float) -> None:
        """Kick a queue after a time, once however often it is asked for."""
        if self._loop is None or index in self._waiting:
            return
        self._waiting.add(index)

        def again() -> None:
            self._waiting.discard(index)
            self._device.kick(index)

        self._loop.call_later(seconds, again)
