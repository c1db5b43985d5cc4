"""The entropy device: random bytes for the guest (VIRTIO 1.3, 5.4)."""

from __future__ import annotations

import os

from pyvmm_device.state import PART, load_fields, optional
from pyvmm_device.tally import ERROR
from pyvmm_virtio.constants.device_ids import VIRTIO_ID_RNG
from pyvmm_virtio.device import VirtioDevice
from pyvmm_virtio.devices.throttle import Throttle
from pyvmm_virtio.errors import VirtioUsageError
from pyvmm_virtio.features import RING_FEATURES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from pyvmm_device import EventLoop
    from pyvmm_virtio.rate_limiter import RateLimiter

MAX_BYTES = 65536
"""The most that one request gets, whatever room it has."""
RETRY_SECONDS = 0.1


class Rng(VirtioDevice):
    """A source of random bytes.

    A driver that offers more room than `max_bytes` gets as many and asks again, so a guest cannot make the host work
    for long or hold much memory.

    Args:
        source: returns up to as many bytes as it is asked for; `os.urandom` by default. It may return none, or raise
            OSError, where it has none now: with a loop it is asked again, without one the request waits for a kick.
        max_bytes: the most that one request gets.
        rate_limiter: how many bytes and requests there may be in a time.
        loop: where a rate limit, or a source that has nothing, is waited for.
        queue_size: the largest size of the queue.

    Raises:
        VirtioUsageError: the source is none, or a limit has no loop.

    >>> Rng(source=lambda count: bytes(count))  # as in the joke
    <Rng inactive, 1 queues>
    """

    device_type = VIRTIO_ID_RNG

    def __init__(
        self,
        source: Callable[[int], bytes] = os.urandom,
        *,
        max_bytes: int = MAX_BYTES,
        rate_limiter: RateLimiter | None = None,
        loop: EventLoop | None = None,
        queue_size: int = 256,
        ring_features: int = RING_FEATURES,
    ) -> None:
        if not callable(source):
            raise VirtioUsageError(
                f"{source!r} is no source: give a function that returns as many bytes as it is asked for"
            )
        self.source = source
        self.max_bytes = max(1, max_bytes)
        self._throttle = Throttle(self, rate_limiter, loop)
        self._waits = Throttle(self, None, loop)
        super().__init__(queue_max_sizes=(queue_size,), ring_features=ring_features, loop=loop)

    def process_queue(self, index: int) -> None:
        """Fill what is in the queue."""
        queue = self.queues[index]
        for chain in self.chains(index):
            with chain.writer(self.memory) as writer:
                wanted = min(writer.available_bytes(), self.max_bytes)
                if not self._throttle.admit(index, wanted):
                    queue.go_to_previous_position()
                    return
                data = self._draw(wanted) if wanted else b""
                if wanted and not data:
                    # 5.4.6.2: "MUST place one or more random bytes into the buffer"
                    queue.go_to_previous_position()
                    self._waits.later(index, RETRY_SECONDS)
                    return
                writer.write(data)
            self.complete(index, chain, len(data))

    def device_state(self) -> dict[str, Any]:
        """Return how much of its rate it has used."""
        return {"rate": self._throttle.state()}

    def check_device_state(self, state: Mapping[str, Any], features: int) -> dict[str, Any]:  # noqa: ARG002 - nothing in it was negotiated
        """Return the fields of `device_state`, each checked."""
        fields = load_fields(type(self).__name__, {"rate": optional(PART)}, state, others=())
        self._throttle.check_state(fields["rate"])
        return fields

    def restore_device(self, state: Mapping[str, Any]) -> None:
        """Become what a state says."""
        self._throttle.restore(self.check_device_state(state, 0)["rate"])

    def _draw(self, wanted: int) -> bytes:
        try:
            return self.source(wanted)[:wanted]
        except OSError as error:
            message = "%r: its source failed (later failures are only counted): %s"
            self.errors.count("source", message, self, error, level=ERROR)
            return b""
