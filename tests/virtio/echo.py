"""The smallest useful device: it writes what it reads, back to front, from as many queues as one likes."""

from collections.abc import Mapping, Sequence
from typing import Any

from pyvmm_device import Ram
from pyvmm_virtio.device import VirtioDevice
from pyvmm_virtio.errors import VirtqueueError
from pyvmm_virtio.features import RING_FEATURES
from pyvmm_virtio.shared_memory import SharedMemory

CONFIG = bytes(range(24))
DOUBLE = 5  # a feature of its own: answers twice
NEEDS_DOUBLE = 6


class Echo(VirtioDevice):
    device_type = 42
    feature_dependencies = {NEEDS_DOUBLE: (DOUBLE,)}
    shared_memory = (
        SharedMemory(7, 0x1_0000_1000, base=0x9_0000_0000),
        SharedMemory(9, 0x1800, 0xA_0000_0000, Ram(0x1800)),
    )

    def __init__(self, queues: Sequence[int] = (256, 64), *, ring_features: int = RING_FEATURES) -> None:
        super().__init__(
            features=1 << DOUBLE | 1 << NEEDS_DOUBLE,
            config=CONFIG,
            queue_max_sizes=queues,
            ring_features=ring_features,
        )
        self.served = 0
        self.resets: list[int | None] = []

    def process_queue(self, index: int) -> None:
        for chain in self.chains(index):
            answer = chain.reader(self.memory).read()[::-1] * (2 if self.negotiated(DOUBLE) else 1)
            self.served += 1
            self.complete(index, chain, chain.writer(self.memory).write(answer))

    def write_config(self, offset: int, data: memoryview) -> None:
        if offset == 0 and len(data) == 1 and data[0] == 0xFF:
            raise VirtqueueError(0, None, None, "this must not be written")
        if offset + len(data) <= len(self.config):
            self.config[offset : offset + len(data)] = data

    def reset(self) -> None:
        self.resets.append(None)

    def queue_reset(self, index: int) -> None:
        self.resets.append(index)

    def device_state(self) -> dict[str, Any]:
        return {"served": self.served}

    def restore_device(self, state: Mapping[str, Any]) -> None:
        self.served = state["served"]
