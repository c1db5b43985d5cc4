"""How much a device may do in a time: token buckets for bytes and for operations.

A bucket of `size` tokens fills up again in `refill_time` milliseconds, plus a burst that is there once. This is the
model, and the words, of Firecracker's and Cloud Hypervisor's rate limiters.
"""

from __future__ import annotations

import time

from pyvmm_device.state import load_fields, number, record, uint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

NANOSECONDS = 1_000_000
BUCKET = {"filled_ns": number(-(1 << 63), 1 << 63), "burst": uint(64)}
"""What a state says of a bucket."""


class TokenBucket:
    """Tokens that are taken and come back with time.

    Something larger than the whole bucket passes when the bucket is full, and is paid for afterwards: the bucket is in
    debt until as much time has gone by as it was worth.

    Args:
        size: how many tokens the bucket holds: bytes, or operations.
        refill_time: milliseconds in which an empty bucket fills up.
        one_time_burst: tokens beyond the bucket's size that are there at the start and do not come back.
        clock: nanoseconds; a test brings its own.

    Raises:
        ValueError: a size or a time of nothing.
        TypeError: one that is no integer, with which there is no exact rate.

    >>> now = 0
    >>> bucket = TokenBucket(10, 1000, clock=lambda: now)
    >>> bucket.take(10), bucket.take(1)  # the second has to wait for a tenth of a second
    (0, 100000000)
    """

    __slots__ = ("_clock", "_then", "burst", "one_time_burst", "refill_ns", "size", "tokens")

    def __init__(
        self,
        size: int,
        refill_time: int = 1000,
        one_time_burst: int = 0,
        *,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        if not all(isinstance(value, int) for value in (size, refill_time, one_time_burst)):
            raise TypeError(f"{size!r} tokens in {refill_time!r} ms, {one_time_burst!r} at the start: give integers")
        if size <= 0 or refill_time <= 0 or one_time_burst < 0:
            raise ValueError(f"a bucket of {size} tokens in {refill_time} ms limits nothing: give positive numbers")
        self.size = size
        self.refill_ns = refill_time * NANOSECONDS
        self.one_time_burst = one_time_burst
        self._clock = clock
        self.reset()

    def reset(self) -> None:
        """Fill the bucket, the burst included."""
        self.burst = self.one_time_burst
        # in units of 1/refill_ns of a token, so that no rounding makes a rate drift
        self.tokens = self.size * self.refill_ns
        self._then = self._clock()

    def wait(self, count: int) -> int:
        """Return the nanoseconds until `count` tokens can be taken; 0 is now."""
        now = self._clock()
        full = self.size * self.refill_ns
        self.tokens = min(full, self.tokens + max(0, now - self._then) * self.size)
        self._then = now
        missing = min(max(0, count - self.burst) * self.refill_ns, full) - self.tokens
        return -(-missing // self.size) if missing > 0 else 0

    def charge(self, count: int) -> None:
        """Take tokens, from the burst first, whether they are there or not."""
        from_burst = min(self.burst, count)
        self.burst -= from_burst
        self.tokens -= (count - from_burst) * self.refill_ns

    def take(self, count: int) -> int:
        """Take `count` tokens and return 0, or take none and return the nanoseconds until they are there."""
        nanoseconds = self.wait(count)
        if not nanoseconds:
            self.charge(count)
        return nanoseconds

    def state(self) -> dict[str, int]:
        """Return what is left, as JSON can carry it: of the bucket in nanoseconds of refill, and of the burst."""
        self.wait(0)
        return {"filled_ns": self.tokens // self.size, "burst": self.burst}

    def check_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return what was left, checked; raises as `restore`."""
        return load_fields(type(self).__name__, BUCKET, state, others=())

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with what was left; a bucket of another size is as full as that one was. Raises DeviceStateError."""
        fields = self.check_state(state)
        self.tokens = min(fields["filled_ns"], self.refill_ns) * self.size
        self.burst = min(fields["burst"], self.one_time_burst)
        self._then = self._clock()

    def __repr__(self) -> str:
        return f"<TokenBucket {self.tokens // self.refill_ns} of {self.size} in {self.refill_ns // NANOSECONDS} ms>"


class RateLimiter:
    """A limit on bytes, on operations, or on both.

    Args:
        bandwidth: the bucket whose tokens are bytes.
        ops: the bucket whose tokens are operations.
    """

    __slots__ = ("bandwidth", "ops")

    def __init__(self, bandwidth: TokenBucket | None = None, ops: TokenBucket | None = None) -> None:
        for bucket in (bandwidth, ops):
            if bucket is not None and not isinstance(bucket, TokenBucket):
                raise TypeError(f"{bucket!r} is no TokenBucket, of which a limit is made")
        self.bandwidth = bandwidth
        self.ops = ops

    def take(self, length: int) -> int:
        """Pay for one operation of `length` bytes and return 0, or return the nanoseconds to wait before asking again.

        What one bucket refuses is not taken from the other.
        """
        nanoseconds = 0
        if self.bandwidth is not None:
            nanoseconds = self.bandwidth.wait(length)
        if self.ops is not None:
            nanoseconds = max(nanoseconds, self.ops.wait(1))
        if not nanoseconds:
            if self.bandwidth is not None:
                self.bandwidth.charge(length)
            if self.ops is not None:
                self.ops.charge(1)
        return nanoseconds

    def reset(self) -> None:
        """Fill both buckets."""
        for bucket in (self.bandwidth, self.ops):
            if bucket is not None:
                bucket.reset()

    def state(self) -> dict[str, Any]:
        """Return what is left in both."""
        return {name: bucket.state() for name in self.__slots__ if (bucket := getattr(self, name)) is not None}

    def check_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return what was left in each bucket there was, checked; raises as `restore`."""
        name = type(self).__name__
        load_fields(name, {}, state, others=self.__slots__)
        return load_fields(name, dict.fromkeys(state, record(BUCKET)), state)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with what was left, in buckets that are there now and were there then. Raises DeviceStateError."""
        self.check_state(state)
        for name in self.__slots__:
            bucket = getattr(self, name)
            if bucket is not None and name in state:
                bucket.restore(state[name])

    def __repr__(self) -> str:
        return f"<RateLimiter bandwidth={self.bandwidth!r}, ops={self.ops!r}>"
