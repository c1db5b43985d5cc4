"""Token buckets, under a clock of our own."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm_device.errors import DeviceStateError
from pyvmm_virtio.rate_limiter import RateLimiter, TokenBucket


class Clock:
    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def test_burst_is_there_once() -> None:
    clock = Clock()
    bucket = TokenBucket(100, 1000, one_time_burst=50, clock=clock)
    assert bucket.take(150) == 0
    assert bucket.take(1) == 10_000_000
    clock.now += 10_000_000_000
    assert bucket.take(100) == 0
    assert bucket.take(50) == 500_000_000
    bucket.reset()
    assert bucket.take(150) == 0


def test_what_is_larger_than_the_bucket_is_paid_for_afterwards() -> None:
    clock = Clock()
    bucket = TokenBucket(100, 1000, clock=clock)
    assert bucket.take(1000) == 0
    assert bucket.take(1) == pytest.approx(9_010_000_000)
    clock.now += 9_010_000_000
    assert bucket.take(1) == 0


@given(st.lists(st.tuples(st.integers(0, 3_000_000_000), st.integers(1, 200)), min_size=1, max_size=60))
def test_the_rate_holds_over_any_time(steps: list[tuple[int, int]]) -> None:
    clock = Clock()
    bucket = TokenBucket(100, 1000, clock=clock)
    taken = 0
    for pause, count in steps:
        clock.now += pause
        wait = bucket.take(count)
        if wait:
            clock.now += wait
            assert bucket.take(count) == 0, "it said when"
        taken += count
        assert taken <= 100 + clock.now * 100 // 1_000_000_000 + 200, "a bucket, the rate, and one large request"


def test_a_refusal_by_one_bucket_costs_nothing_in_the_other() -> None:
    clock = Clock()
    limiter = RateLimiter(TokenBucket(1000, 1000, clock=clock), TokenBucket(1, 1000, clock=clock))
    assert limiter.take(10) == 0
    assert limiter.take(10) == 1_000_000_000
    assert limiter.bandwidth is not None
    assert limiter.bandwidth.tokens // limiter.bandwidth.refill_ns == 990
    limiter.reset()
    assert limiter.take(1000) == 0
    assert "of 1000" in repr(limiter)


def test_a_bucket_of_nothing_is_refused() -> None:
    for arguments in ((0, 1), (1, 0), (1, 1, -1)):
        with pytest.raises(ValueError, match="limits nothing"):
            TokenBucket(*arguments)
    assert RateLimiter().take(1 << 40) == 0


def test_what_is_left_is_carried_over() -> None:
    now = 0
    limiter = RateLimiter(TokenBucket(1000, 1000, 50, clock=lambda: now), TokenBucket(10, 1000, clock=lambda: now))
    assert limiter.take(1800) == 0  # in debt by 750
    state = json.loads(json.dumps(limiter.state()))
    other = RateLimiter(TokenBucket(2000, 1000, 50, clock=lambda: now), TokenBucket(10, 1000, clock=lambda: now))
    other.restore(state)
    assert other.bandwidth is not None
    assert other.bandwidth.burst == 0
    assert other.take(100) == 800_000_000  # twice as large a bucket, in debt by 1500 and to be filled to 100
    now += 800_000_000
    assert other.take(100) == 0
    RateLimiter().restore(state)
    wrongs: list[dict[str, object]] = [{"ops": 5}, {"ops": {}}, {"ops": {"filled_ns": "1", "burst": 0}}]
    for wrong in wrongs:
        with pytest.raises(DeviceStateError):
            other.restore(wrong)
    with pytest.raises(DeviceStateError):
        other.restore(None)  # type: ignore[arg-type] # that is what is tried
