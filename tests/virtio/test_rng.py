"""The entropy device."""

from __future__ import annotations

import pytest

from pyvmm_device import EventLoop
from pyvmm_virtio.devices import Rng
from pyvmm_virtio.driver import drive
from pyvmm_virtio.errors import VirtioUsageError
from pyvmm_virtio.rate_limiter import RateLimiter, TokenBucket


@pytest.mark.parametrize("transport", ["mmio", "pci"])
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_bytes_that_differ(transport: str, ring: str) -> None:
    with drive(Rng(), transport, ring) as driver:
        one, other = driver.read(64), driver.read(64)
        assert len(one) == len(other) == 64
        assert one != other
        assert len(driver.read_exact(100_000)) == 100_000


def test_a_request_has_its_limit_however_much_room_it_has() -> None:
    asked: list[int] = []

    def source(count: int) -> bytes:
        asked.append(count)
        return bytes(count + 5)

    with drive(Rng(source, max_bytes=100)) as driver:
        assert driver.read(1 << 20) == bytes(100)
        assert driver.read(1) == b"\0"
        assert driver.request(0, b"readable buffers are none of its business", into=10) == bytes(10)
        assert driver.request(0, b"no room") == b""
        assert asked == [100, 1, 10]


def test_a_source_that_has_nothing_is_asked_again(caplog: pytest.LogCaptureFixture) -> None:
    answers: list[bytes | OSError] = [b"", OSError("the dice are gone"), OSError("the dice are gone"), b"four"]

    def source(count: int) -> bytes:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    with EventLoop() as loop:
        device = Rng(source, loop=loop)
        with drive(device, pump=lambda: loop.run_once(0.01)) as driver:
            assert driver.read(100) == b"four"
        assert device.errors["source"] == 2
        assert caplog.text.count("dice are gone") == 1


def test_without_a_loop_the_next_kick_asks_again() -> None:
    answers = [b"", b"a", b"b"]
    with drive(Rng(lambda count: answers.pop(0))) as driver:
        first = driver.submit(0, (), (10,))
        driver.poll()
        assert not first.done
        second = driver.submit(0, (), (10,))
        driver.kick(0, always=True)
        assert [driver.wait(request).written() for request in (first, second)] == [b"a", b"b"]


def test_a_rate_limit() -> None:
    now = 0
    with EventLoop() as loop:
        limiter = RateLimiter(bandwidth=TokenBucket(100, 10, clock=lambda: now))
        with drive(Rng(rate_limiter=limiter, loop=loop), pump=lambda: loop.run_once(0.01)) as driver:
            requests = [driver.submit(0, (), (100,)) for _ in range(2)]
            driver.poll()
            assert [request.done for request in requests] == [True, False]
            now += 10_000_000
            driver.wait(requests[1])
    with pytest.raises(VirtioUsageError, match="event loop"):
        Rng(rate_limiter=limiter)
    with pytest.raises(VirtioUsageError, match="no source"):
        Rng(b"four")  # type: ignore[arg-type] # as in the joke
