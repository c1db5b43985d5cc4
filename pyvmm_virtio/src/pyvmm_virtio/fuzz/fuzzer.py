"""The fuzzer: batches of chains, and a look at everything after each."""

from __future__ import annotations

from random import Random

from pyvmm_memory import GuestMemoryMmap
from pyvmm_virtio.constants import device_ids as ids
from pyvmm_virtio.constants import features as f
from pyvmm_virtio.driver import DriverError, drive
from pyvmm_virtio.fuzz.knobs import KNOBS, WRITE, Plan, boundary
from pyvmm_virtio.fuzz.layout import BATCH, BUFFERS, END, GAP, MEMORY_SIZE, TABLE_ROOM, TABLES
from pyvmm_virtio.fuzz.racer import Racer
from pyvmm_virtio.fuzz.recipes import recipe_for
from pyvmm_virtio.fuzz.writers import PackedWriter, SplitWriter, Writer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any, Self

    from pyvmm_virtio.device import VirtioDevice
    from pyvmm_virtio.fuzz.recipes import Recipe

QUEUE_SIZE = 64
BATCHES_BETWEEN_RESETS = 12
BOUNDARY_RATE = 2
"""One chain in so many has fields at an end of their range, whether or not something is wrong with it besides."""
REGISTER_VALUES = (0, 1, 0x40, 0xFF)
CONFIG_ROOM = 64
"""Bytes of a configuration space that are tried field by field: as many as most have."""


class Finding(AssertionError):
    """The device did what no driver can make a right one do. The message says what, and how to see it again."""


class Report:
    """What a run did.

    Attributes:
        chains: how many were offered.
        wrong: how many of them had something wrong.
        boundaries: how many of them had a field at the end of its range, which may be right.
        resets: how often the device was reset and found to work.
        errors: how often the device said so, by kind.
    """

    def __init__(self) -> None:
        self.chains = self.wrong = self.boundaries = self.resets = 0
        self.errors: dict[str, int] = {}

    def __repr__(self) -> str:
        return f"<Report: {self.chains} chains, {self.wrong} of them wrong, {self.resets} resets, {self.errors}>"


class Fuzzer:
    """Attacks one device behind one transport with one kind of ring.

    Args:
        device: what to attack.
        transport: "mmio" or "pci".
        ring: "split" or "packed".
        seed: of chance.
        rate: one chain in so many has something wrong.
        racing: whether a second thread changes descriptors while the device uses them. Which buffers the device may
            write cannot be told then, only that it writes nothing else than buffers.
        beside: called after the kicks of each batch, such as a network that sends something.
        options: further ones of `drive`.
    """

    def __init__(
        self,
        device: VirtioDevice,
        transport: str = "mmio",
        ring: str = "split",
        *,
        seed: int = 0,
        rate: int = 10,
        racing: bool = False,
        beside: Callable[[], object] | None = None,
        **options: Any,  # noqa: ANN401 - drive's
    ) -> None:
        self.device = device
        self.seed = seed
        self.name = f"{type(device).__name__}, {transport}, {ring}, seed {seed}"
        self.chance = Random(f"{seed} {transport} {ring}")
        self.rate = rate
        self.beside = beside
        self.report = Report()
        self.memory = GuestMemoryMmap.from_ranges([(0, MEMORY_SIZE)])
        self.view = self.memory.get_slice(0, MEMORY_SIZE)
        self.driver: Any = drive(
            device, transport, ring, memory=self.memory, queue_size=QUEUE_SIZE, start=False, **options
        )
        self.recipe: Recipe = recipe_for(device)
        self.allowed: list[tuple[int, int]] = []
        self.config: int | None = None
        self._turn = 0
        self._bugs = device.bugs
        self.racer = Racer(lambda: self.writers, seed) if racing else None
        self.reset()
        if self.racer is not None:
            self.racer.start()

    # setting up

    def reset(self) -> None:
        """Reset the device and set it up again; raises Finding where it does not work then."""
        driver = self.driver
        try:
            driver.reset_device()
        except DriverError as error:
            raise Finding(f"{self.name}: the status is not 0 after a reset") from error
        driver.forget()
        try:
            # its own requests first, which show that it works; then its rings belong to the attack
            driver.start()
            self._probe()
        except DriverError as error:
            raise Finding(f"{self.name}: after a reset the device does not work: {error}") from error
        self._check_bugs()
        self._take_over()
        self.report.resets += 1

    def _probe(self) -> None:
        """Have one right request answered."""
        # the queue that sends, where there is one that waits for something to receive
        queue = 1 if self.device.device_type in (ids.VIRTIO_ID_NET, ids.VIRTIO_ID_CONSOLE) else 0
        parts = self.recipe(Random(self.report.resets), queue, len(self.driver.queues))
        readable = [data for data, _ in parts if data is not None]
        writable = [size for data, size in parts if data is None]
        request = self.driver.wait(self.driver.submit(queue, readable, writable))
        request.release()

    def _take_over(self) -> None:
        """Reset without a word and begin with empty rings."""
        driver = self.driver
        driver.reset_device()
        driver.forget()
        after_start = driver.after_start
        driver.after_start = lambda: None
        try:
            driver.start()
        finally:
            driver.after_start = after_start
        packed = driver.has(f.VIRTIO_F_RING_PACKED)
        self.writers: list[Writer] = [
            PackedWriter(self.view, ring) if packed else SplitWriter(self.view, ring) for ring in driver.queues
        ]
        self.allowed = [area for writer in self.writers for area in writer.protected()]
        try:
            self.config = driver.port.config_address()
        except LookupError:
            self.config = None
        self._turn = 0

    # attacking

    def run(self, chains: int) -> Report:
        """Offer so many chains, and some more accesses to registers; raises Finding."""
        end = self.report.chains + chains
        while self.report.chains < end:
            self.batch(min(BATCH, end - self.report.chains))
        for kind, count in self.device.errors.items():
            self.report.errors[kind] = count
        return self.report

    def batch(self, count: int) -> None:
        """Offer some chains, kick, and look."""
        queues = set()
        place = BUFFERS
        for number in range(count):
            queue = self.chance.randrange(len(self.writers))
            queues.add(queue)
            place = self._chain(queue, TABLES + number * TABLE_ROOM, place)
        offered = [area for writer in self.writers for area in writer.writable()]
        self.allowed += offered
        before = bytearray(self.view)
        if self.racer is None:
            self._kick(queues)
        else:
            with self.racer:
                self._kick(queues)
        # a guest that has descriptors overwritten as if they were buffers allows whatever they say then
        blind = any(self._holds_descriptors(addr, length) for addr, length in offered)
        self._check_bugs()
        if not blind:
            self._look(before)
        self.report.chains += count
        self._turn += 1
        if blind or self._turn >= BATCHES_BETWEEN_RESETS or self.driver.needs_reset:
            self.reset()

    def _holds_descriptors(self, addr: int, length: int) -> bool:
        places = [(writer.desc, writer.desc + 16 * writer.size) for writer in self.writers]
        return any(addr < end and begin < addr + length for begin, end in [*places, (TABLES, BUFFERS)])

    def _kick(self, queues: set[int]) -> None:
        for queue in queues:
            self.driver.port.notify(queue, queue, 2)
        if self.beside is not None:
            self.beside()
        self._registers()

    def _chain(self, queue: int, table: int, place: int) -> int:
        """Write one chain; returns where the next may put its buffers."""
        writer = self.writers[queue]
        buffers: list[list[int]] = []
        for data, size in self.recipe(self.chance, queue, len(self.writers)):
            if place + size + GAP > END:
                place = BUFFERS
            if data is not None:
                writer.poke(place, data)
            buffers.append([place, size, 0 if data is not None else WRITE])
            place += size + GAP
        plan = Plan(buffers, indirect=bool(self.chance.randrange(2)))
        if self.racer is None and not self.chance.randrange(BOUNDARY_RATE):
            boundary(self.chance, plan, writer)
            self.report.boundaries += 1
        if self.racer is None and not self.chance.randrange(self.rate):
            self.chance.choice(KNOBS)(self.chance, plan, writer)
            self.report.wrong += 1
        if len(plan.buffers) * 16 > TABLE_ROOM:
            del plan.buffers[TABLE_ROOM // 16 :]
        writer.offer(plan, table)
        return place

    def _registers(self) -> None:
        """Access a field of the configuration space, and now and then other registers, as no driver should."""
        port, chance, config = self.driver.port, self.chance, self.config
        for _ in range(2 if config is not None else 0):
            size, room = chance.choice((1, 2, 4, 4, 8)), chance.choice((16, CONFIG_ROOM))
            self._register((config or 0) + chance.randrange(room // size) * size, size, 3)
        if chance.randrange(8):
            return
        base = port.base if hasattr(port, "base") else port.bars[4]
        for _ in range(4):
            self._register(base + chance.randrange(0x180), chance.choice((1, 2, 4, 8)), 1)

    def _register(self, addr: int, size: int, writes: int) -> None:
        """Read a register, or so often of four times write something into it, mostly from an end of its range."""
        port, chance = self.driver.port, self.chance
        if chance.randrange(4) >= writes:
            port.load(addr, size)
            return
        most = (1 << 8 * size) - 1
        value = chance.choice((*REGISTER_VALUES, chance.getrandbits(8 * size), most, most >> 1, most ^ most >> 1))
        port.store(addr, value & most, size)

    def _look(self, before: bytearray) -> None:
        """See that nothing changed but what may."""
        after = bytearray(self.view)
        areas = self.allowed if self.racer is None else [*self.allowed, *self.racer.areas()]
        for addr, length in areas:
            if addr < MEMORY_SIZE:
                end = min(addr + length, MEMORY_SIZE)
                before[addr:end] = after[addr:end]
        if before != after:
            at = next(index for index in range(MEMORY_SIZE) if before[index] != after[index])
            raise Finding(f"{self.name}: {at:#x} was written, which no buffer covers, after {self.report!r}")

    def _check_bugs(self) -> None:
        if self.device.bugs != self._bugs:
            raise Finding(f"{self.name}: {self.device.last_error!r} came out of it after {self.report!r}")

    def close(self) -> None:
        """Let the device and memory go."""
        if self.racer is not None:
            self.racer.stop()
        self.driver.close()
        self.view.release()
        self.memory.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
