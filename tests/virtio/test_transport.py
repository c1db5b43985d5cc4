"""A device behind both transports and both rings, driven as a guest does: one suite for all of them."""

import json
import random
from collections.abc import Callable, Iterator
from contextlib import suppress
from threading import Event, Thread, Timer
from typing import Any

import pytest

from pyvmm_device import DeviceStateError, EventLoop
from pyvmm_memory import GuestMemoryMmap
from pyvmm_virtio.constants import features as f
from pyvmm_virtio.constants import mmio as m
from pyvmm_virtio.constants import pci as p
from pyvmm_virtio.driver import Driver, DriverError, drive
from pyvmm_virtio.driver.drive import MMIO_BASE
from pyvmm_virtio.driver.rings import RingFull
from pyvmm_virtio.errors import VirtioUsageError
from pyvmm_virtio.in_flight import InFlight
from pyvmm_virtio.queue import DescriptorChain, SplitQueue
from pyvmm_virtio.transport import status as s

from .echo import CONFIG, DOUBLE, NEEDS_DOUBLE, Echo

Start = Callable[..., Driver]


@pytest.fixture(params=["mmio", "pci"])
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=["split", "packed"])
def ring(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def start(transport: str, ring: str) -> Iterator[Start]:
    made: list[Driver] = []

    def start(device: Echo, **options: Any) -> Driver:  # noqa: ANN401 - drive's options
        made.append(drive(device, transport, ring, **options))
        return made[-1]

    yield start
    for driver in made:
        driver.close()


OPTIONS = [
    {},
    {"indirect": False},
    {"event_idx": False},
    {"indirect": False, "event_idx": False},
    {"in_order": True},
    {"notification_data": True},
    {"queue_size": 2},
]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_many_requests_with_every_option(start: Start, options: dict[str, Any]) -> None:
    device = Echo()
    driver = start(device, **options)
    chance = random.Random(1)
    for _ in range(700):  # more than twice round the ring
        parts = [chance.randbytes(chance.randrange(1, 40)) for _ in range(chance.randrange(1, 3))]
        if options.get("queue_size") == 2 and not driver.has(28):
            parts = parts[:1]
        question = b"".join(parts)
        if options.get("queue_size") == 2 and options.get("indirect") is not False:
            parts = [question]
        assert driver.request(chance.randrange(2), *parts, into=80) == question[::-1]
    assert device.served == 700
    assert not device.errors


def test_many_deep(start: Start) -> None:
    driver = start(Echo(), indirect=False)
    waiting: dict[int, Any] = {}
    sent = 0
    while sent < 2000:
        try:
            request = driver.submit(0, (sent.to_bytes(4, "little"),), (4,), kick=False)
        except RingFull:
            driver.kick(0)
            for done in driver.poll():
                assert waiting.pop(id(done))[1][::-1] == done.written()
                done.release()
            continue
        waiting[id(request)] = request, sent.to_bytes(4, "little")
        sent += 1
    driver.kick(0)
    driver.wait_until(lambda: not driver.poll() and not driver._requests[0])


def test_interrupts_arrive_and_can_be_suppressed(start: Start, transport: str) -> None:
    device = Echo()
    driver = start(device, event_idx=False)
    driver.request(0, b"a", into=1)
    assert driver.interrupts == 1
    if transport == "pci":
        assert driver.vectors == {1: 1}
    driver.queues[0].suppress_interrupts(True)
    driver.request(0, b"b", into=1)
    assert driver.interrupts == 1
    driver.queues[0].suppress_interrupts(False)
    driver.request(0, b"c", into=1)
    assert driver.interrupts == 2


def test_one_interrupt_for_a_batch(start: Start) -> None:
    driver = start(Echo())
    for _ in range(10):
        driver.submit(0, (b"x",), (1,), kick=False)
    driver.kick(0)
    assert driver.interrupts == 1
    assert len(driver.poll()) == 10


@pytest.mark.parametrize("irq", ["edge", "level", "msix", "intx"])
def test_interrupt_kinds(ring: str, irq: str) -> None:
    with drive(Echo(), "mmio" if irq in ("edge", "level") else "pci", ring, irq=irq) as driver:
        for _ in range(3):
            assert driver.request(1, b"ab", into=2) == b"ba"
        assert driver.interrupts == 3
        assert (driver.vectors == {2: 3}) == (irq == "msix")


def test_queues_share_a_vector_where_there_are_few(ring: str) -> None:
    with drive(Echo(), "pci", ring, vectors=2) as driver:
        driver.request(0, b"a", into=1)
        driver.request(1, b"a", into=1)
        assert driver.vectors == {1: 2}


def test_configuration_space(start: Start) -> None:
    device = Echo()
    driver = start(device)
    assert driver.config(0, len(CONFIG)) == CONFIG
    generation = driver.port.generation()
    assert driver.port.generation() == generation
    device.update_config(4, b"\xaa\xbb")
    assert driver.port.generation() != generation
    driver.poll()
    assert driver.config_changes == 1
    assert driver.config(4, 2) == b"\xaa\xbb"
    driver.set_config(8, 0x1234, 2)
    assert device.config[8:10] == b"\x34\x12"
    # a change that was not read since the last one needs no new generation
    device.update_config(4, b"\1\2")
    generation = driver.port.generation()
    device.update_config(4, b"\3\4")
    assert driver.port.generation() == generation


def test_a_changed_generation_makes_the_driver_read_again(start: Start) -> None:
    device = Echo()
    driver = start(device)
    before = driver.port.generation

    def once() -> int:
        value = before()
        driver.port.generation = before  # type: ignore[method-assign]
        device.update_config(0, b"\xee" * 8)
        return value

    driver.config(0, 1)
    driver.port.generation = once  # type: ignore[method-assign]
    assert driver.config(0, 8) == b"\xee" * 8


def test_negotiation(start: Start, transport: str) -> None:
    driver = start(Echo(), start=False)
    port = driver.port
    port.set_status(0)
    offered = port.device_features()
    assert offered >> f.VIRTIO_F_VERSION_1 & 1
    # features are taken only between DRIVER and FEATURES_OK
    for features, accepted in (
        (1 << 50 | 1 << f.VIRTIO_F_VERSION_1, False),
        (1 << DOUBLE, False),
        (1 << NEEDS_DOUBLE | 1 << f.VIRTIO_F_VERSION_1, False),
        (1 << NEEDS_DOUBLE | 1 << DOUBLE | 1 << f.VIRTIO_F_VERSION_1, True),
    ):
        port.set_status(0)
        port.set_status(s.ACKNOWLEDGE)
        port.set_status(s.ACKNOWLEDGE | s.DRIVER)
        port.set_driver_features(features)
        port.set_status(s.ACKNOWLEDGE | s.DRIVER | s.FEATURES_OK)
        assert port.status() == s.ACKNOWLEDGE | s.DRIVER | (s.FEATURES_OK if accepted else 0), hex(features)
    driver.know(1 << 5)
    with pytest.raises(DriverError, match="refuses"):
        driver.start()
    assert port.status() & s.FAILED


def test_a_device_feature_works(start: Start) -> None:
    driver = start(Echo(), features=1 << DOUBLE)
    assert driver.request(0, b"ab", into=4) == b"baba"


def test_steps_must_come_in_order(start: Start) -> None:
    device = Echo()
    driver = start(device, start=False)
    port = driver.port
    port.set_status(0)
    port.set_status(s.DRIVER)
    assert port.status() == 0
    port.set_status(s.ACKNOWLEDGE | s.DRIVER_OK)
    assert port.status() == s.ACKNOWLEDGE
    # SeaBIOS takes several steps in one write
    port.set_status(s.ACKNOWLEDGE | s.DRIVER)
    port.set_driver_features(1 << f.VIRTIO_F_VERSION_1)
    port.set_status(s.ACKNOWLEDGE | s.DRIVER | s.FEATURES_OK | s.DRIVER_OK)
    assert port.status() == s.ACKNOWLEDGE | s.DRIVER | s.FEATURES_OK | s.DRIVER_OK
    assert device.active
    port.set_status(s.ACKNOWLEDGE)  # a bit cannot be cleared
    assert port.status() == s.ACKNOWLEDGE | s.DRIVER | s.FEATURES_OK | s.DRIVER_OK
    port.set_status(0x80)
    assert port.status() & s.FAILED
    port.set_status(0)
    assert port.status() == 0
    port.set_status(0x80)
    port.set_status(s.ACKNOWLEDGE)
    assert port.status() == s.FAILED


def test_reset_forgets_everything(start: Start) -> None:
    device = Echo()
    driver = start(device)
    driver.request(0, b"a", into=1)
    driver.port.set_status(0)
    assert driver.port.status() == 0
    assert not device.active
    assert not driver.port.queue_enabled(0)
    assert device.resets[-1] is None
    assert driver.port.take_events() == 0
    for ring in driver.queues:
        ring.close()
    driver.queues, driver._requests = [], []
    driver.start()
    assert driver.request(0, b"again", into=5) == b"niaga"


def test_a_failing_device_does_not_start(start: Start) -> None:
    class Fails(Echo):
        def activate(self, *arguments: object) -> None:
            raise OSError("no")

    with pytest.raises(DriverError, match="does not start"):
        start(Fails())


def test_a_bug_of_the_device_is_seen_and_ends_nothing(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    class Bug(Echo):
        def process_queue(self, index: int) -> None:
            raise ZeroDivisionError

    device = Bug()
    driver = start(device)
    with pytest.raises(DriverError, match="needs a reset"):
        driver.request(0, b"a", into=1)
    assert device.errors == {"ZeroDivisionError": 1}
    assert "ZeroDivisionError" in caplog.text
    assert driver.config_changes == 1  # 2.1.2: the driver is told


def test_a_guest_error_sets_needs_reset_and_a_reset_heals(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    device = Echo()
    driver = start(device)
    for turn in range(3):
        driver.submit_buffers(0, [(1 << 40, 10, 0)])
        assert driver.needs_reset
        with pytest.raises(DriverError, match="needs a reset"):
            driver.request(0, b"a", into=1)
        assert device.errors == {"InvalidBuffer": turn + 1}
        driver.reset()
        assert not driver.needs_reset
        assert driver.request(0, b"ok", into=2) == b"ko"
    assert caplog.text.count("needs a reset") == 1


def test_a_wrong_write_to_the_configuration_sets_needs_reset(start: Start) -> None:
    driver = start(Echo())
    driver.set_config(0, 0xFF, 1)
    assert driver.needs_reset


def test_no_bug_of_a_device_comes_out(start: Start, caplog: pytest.LogCaptureFixture) -> None:
    class Bugs(Echo):
        def read_config(self, offset: int, buffer: memoryview) -> None:
            raise ZeroDivisionError

        def write_config(self, offset: int, data: memoryview) -> None:
            raise ZeroDivisionError

        def reset(self) -> None:
            raise ZeroDivisionError

        def queue_reset(self, index: int) -> None:
            raise ZeroDivisionError

    device = Bugs()
    driver = start(device)
    assert driver.config(3, 1) == b"\0"
    assert driver.needs_reset
    driver.set_config(3, 1, 1)
    driver.port.reset_queue(0)
    assert not driver.port.queue_enabled(0)
    driver.reset()
    assert device.bugs == 6  # three of them are resets
    assert caplog.text.count("an error of its own") == 1
    assert driver.request(0, b"ok", into=2) == b"ko"


def test_kicks_that_mean_nothing(start: Start) -> None:
    device = Echo()
    driver = start(device)
    device.kick(99)
    device.kick(-1)
    driver.kick(1, always=True)
    driver.port.set_status(0)
    device.kick(0)
    assert device.served == 0


def test_a_queue_number_is_looked_at_whole(ring: str) -> None:
    device = Echo()
    with drive(device, "mmio", ring) as driver:
        request = driver.submit(0, (b"a",), (1,), kick=False)
        driver.port.notify(0, 1 << 16, 4)
        assert not request.done
        driver.poll()
        assert device.served == 0
        driver.port.notify(0, 0, 4)
        assert driver.wait(request).written() == b"a"


def test_queue_reset(start: Start) -> None:
    device = Echo()
    driver = start(device)
    driver.request(0, b"before", into=6)
    device.paused = True
    request = driver.submit(0, (b"lost",), (4,))
    lost = driver.reset_queue(0)
    assert lost == [request]
    assert device.resets[-1] == 0
    device.resume()
    assert driver.request(0, b"after", into=5) == b"retfa"
    assert driver.request(1, b"other", into=5) == b"rehto"
    assert not request.done


def test_queue_reset_needs_the_feature(start: Start, transport: str) -> None:
    driver = start(Echo())
    driver.know(1 << f.VIRTIO_F_VERSION_1)
    driver.reset()
    with pytest.raises(DriverError, match="RING_RESET"):
        driver.reset_queue(0)
    driver.port.reset_queue(0)
    assert driver.port.queue_enabled(0)


def test_what_comes_at_the_wrong_time_is_ignored_and_counted(start: Start, transport: str) -> None:
    device = Echo()
    driver = start(device)
    port, ignored = driver.port, driver.transport.control.ignored
    port.set_driver_features(0)
    assert ignored.pop("features written outside of negotiation") == 2
    driver.know(1 << f.VIRTIO_F_VERSION_1)
    driver.reset()
    device.queues[0].set_ready(False)
    with suppress(LookupError):  # PCI: its vector stays
        port.setup_queue(0, 4, 0x100000, 0x110000, 0x120000)
    assert ignored.pop("a queue is enabled after DRIVER_OK, without RING_RESET") == 1
    assert not port.queue_enabled(0)
    port.set_status(0)
    port.set_status(s.ACKNOWLEDGE)
    driver.set_config(0, 1, 1)
    assert ignored.pop("the configuration is written before DRIVER or after FAILED") == 1
    assert device.config == CONFIG


def test_queues_cannot_be_changed_while_enabled_nor_before_features(start: Start) -> None:
    device = Echo()
    driver = start(device)
    before = device.queues[0].desc_table()
    driver.port.setup_queue(0, 4, 0x100000, 0x110000, 0x120000)
    assert device.queues[0].desc_table() == before
    assert device.queues[0].size() == 256
    driver.port.set_status(0)
    driver.port.setup_queue(0, 4, 0x100000, 0x110000, 0x120000)
    assert not driver.port.queue_enabled(0)
    assert driver.port.queue_max(99) == 0
    with suppress(LookupError):  # PCI: it has no vector
        driver.port.setup_queue(99, 4, 0x100000, 0x110000, 0x120000)
    assert not driver.port.queue_enabled(99)


def test_impossible_sizes_and_addresses_are_ignored(start: Start) -> None:
    device = Echo()
    driver = start(device, start=False)
    driver.know(1 << f.VIRTIO_F_VERSION_1)
    port = driver.port
    port.set_status(0)
    port.set_status(3)
    port.set_driver_features(1 << f.VIRTIO_F_VERSION_1)
    port.set_status(11)
    port.setup_queue(0, 3, 0x100001, 0x110001, 0x120002)
    queue = device.queues[0]
    assert (queue.size(), queue.desc_table(), queue.avail_ring(), queue.used_ring()) == (256, 0, 0, 0)


def test_shared_memory(start: Start, transport: str) -> None:
    driver = start(Echo())
    found, other = driver.port.shared_memory(7), driver.port.shared_memory(9)
    assert found is not None
    assert other is not None
    assert (found[1], other[1]) == (0x1_0000_1000, 0x1800)
    if transport == "mmio":
        assert (found[0], other[0]) == (0x9_0000_0000, 0xA_0000_0000)
    else:
        assert other[0] - found[0] == found[1]
        driver.port.store(other[0] + 0x17FC, 0xCAFE, 4)
        driver.port.store(found[0] + 0x10, 0xCAFE, 4)
        assert driver.port.load(other[0] + 0x17FC, 4) == 0xCAFE
        assert driver.port.load(found[0] + 0x10, 4) == 0  # nothing answers there yet
    assert driver.port.shared_memory(8) is None


@pytest.mark.parametrize("by_kick", [True, False])
def test_nothing_is_taken_while_the_device_comes_to_rest(transport: str, ring: str, by_kick: bool) -> None:
    class Restless(Echo):
        def quiesce(self) -> None:
            if by_kick:
                self.kick(0)
            else:
                self.serve(self.process_queue, 0)

    device = Restless()
    driver = drive(device, transport, ring)
    device.pause()
    waiting = driver.submit(0, (b"two",), (3,))
    device.resume()
    assert driver.wait(waiting).written() == b"owt"
    device.paused = True
    late = driver.submit(0, (b"three",), (5,))
    device.paused = False
    device.pause()
    assert device.served == 1
    device.resume()
    assert driver.wait(late).written() == b"eerht"


def test_state_goes_through_json_and_to_another_machine(start: Start, transport: str, ring: str) -> None:
    first = Echo()
    one = drive(first, transport, ring)
    one.request(0, b"one", into=3)
    first.pause()
    waiting = one.submit(0, (b"two",), (3,))
    state = json.loads(json.dumps(one.transport.state()))
    second = Echo()
    two = drive(second, transport, ring, memory=one.memory, start=False)
    two.transport.restore(state)
    assert second.served == 1
    assert second.paused
    # the same driver goes on, on the other machine
    one.port.io = two.port.io
    wires_to(two, one)
    assert not waiting.done
    before = one.interrupts
    second.resume()
    assert one.interrupts > before
    assert one.wait(waiting).written() == b"owt"
    assert one.request(0, b"three", into=5) == b"eerht"
    assert second.served == 3
    one.close()


def wires_to(other: Driver, driver: Driver) -> None:
    other.note_interrupt = driver.note_interrupt  # type: ignore[method-assign]


@pytest.mark.parametrize("field", ["status", "virtio", "accepted"])
def test_a_bad_state_is_refused(start: Start, transport: str, field: str) -> None:
    device = Echo()
    driver = start(device)
    box = driver.transport
    state = box.state()
    part = state if transport == "mmio" else state["parts"]["virtio"]
    good = json.loads(json.dumps(state))
    for bad in ("x", None, -1, {"device": "Echo"}, 1 << 70):
        part[field] = bad
        with pytest.raises(DeviceStateError):
            box.restore(state)
    del part[field]
    with pytest.raises(DeviceStateError):
        box.restore(state)
    with pytest.raises(DeviceStateError):
        box.restore({"device": "Other"})
    bad_own = json.loads(json.dumps(good))
    (bad_own if transport == "mmio" else bad_own["parts"]["virtio"])["virtio"]["own"] = []
    with pytest.raises(DeviceStateError, match="own is no dictionary"):
        box.restore(bad_own)
    if transport == "pci":
        part = json.loads(json.dumps(good))
        part["parts"]["virtio"]["queue_vectors"][1] = 9
        with pytest.raises(DeviceStateError, match="vectors that are not there"):
            box.restore(part)
    box.restore(good)
    device.resume()
    assert driver.request(0, b"fine", into=4) == b"enif"


def test_registers_take_aligned_words_only(ring: str) -> None:
    with drive(Echo(), "mmio", ring) as driver:
        io = driver.port.io
        for addr, size in ((MMIO_BASE, 1), (MMIO_BASE + 1, 2), (MMIO_BASE + 0x30, 4), (MMIO_BASE + 0xF0, 4)):
            buffer = memoryview(bytearray(b"\xcc" * size))
            io.mmio_read(addr, buffer)
            assert bytes(buffer) == bytes(size)
        driver.port.set(m.VIRTIO_MMIO_MAGIC_VALUE, 0)
        io.mmio_write(MMIO_BASE + m.VIRTIO_MMIO_STATUS, memoryview(b"\0"))
        assert driver.port.status() == 15
        # beyond the configuration space there is nothing
        assert driver.port.load(MMIO_BASE + 0x100 + len(CONFIG) - 2, 4) == int.from_bytes(CONFIG[-2:], "little")
        assert driver.port.load(MMIO_BASE + 0xF00, 4) == 0


def test_queue_ready_zero_stops_a_queue(ring: str) -> None:
    device = Echo()
    with drive(device, "mmio", ring) as driver:
        driver.port.set(m.VIRTIO_MMIO_QUEUE_SEL, 0)
        driver.port.set(m.VIRTIO_MMIO_QUEUE_READY, 0)
        assert not driver.port.queue_enabled(0)
        driver.kick(0, always=True)
        driver.port.set(m.VIRTIO_MMIO_QUEUE_READY, 0)
        assert not device.needs_reset


def test_legacy_drivers_are_refused(ring: str) -> None:
    with drive(Echo(), "mmio", ring) as driver:
        assert driver.port.get(m.VIRTIO_MMIO_VERSION) == 2
        for legacy in (0x28, 0x3C, 0x40):  # GuestPageSize, QueueAlign, QueuePFN
            driver.port.set(legacy, 4096)
            assert driver.port.get(legacy) == 0


def test_vectors(ring: str) -> None:
    with drive(Echo(), "pci", ring) as driver:
        port = driver.port
        port.set(p.VIRTIO_PCI_COMMON_MSIX, 99, 2)
        assert port.get(p.VIRTIO_PCI_COMMON_MSIX, 2) == p.VIRTIO_MSI_NO_VECTOR
        with pytest.raises(LookupError):
            port.map_vector(p.VIRTIO_PCI_COMMON_MSIX, 99)
        port.queue_max(0)
        port.set(p.VIRTIO_PCI_COMMON_Q_MSIX, p.VIRTIO_MSI_NO_VECTOR, 2)
        driver.request(0, b"a", into=1)
        assert driver.interrupts == 0
        port.queue_max(99)
        port.set(p.VIRTIO_PCI_COMMON_Q_MSIX, 1, 2)
        assert port.get(p.VIRTIO_PCI_COMMON_Q_MSIX, 2) == p.VIRTIO_MSI_NO_VECTOR
        port.set_status(0)
        port.queue_max(1)
        assert port.get(p.VIRTIO_PCI_COMMON_Q_MSIX, 2) == p.VIRTIO_MSI_NO_VECTOR


def test_the_common_configuration_in_other_widths(ring: str) -> None:
    with drive(Echo(), "pci", ring) as driver:
        port = driver.port
        port.queue_max(0)
        assert port.get(p.VIRTIO_PCI_COMMON_Q_DESCLO, 8) == driver.queues[0].desc
        assert port.get(p.VIRTIO_PCI_COMMON_Q_SIZE, 1) == 0
        port.set(p.VIRTIO_PCI_COMMON_Q_SELECT, 1, 1)
        port.set(p.VIRTIO_PCI_COMMON_NUMQ, 1, 2)
        assert port.get(p.VIRTIO_PCI_COMMON_NUMQ, 2) == 2
        port.set(p.VIRTIO_PCI_COMMON_Q_ENABLE, 0, 2)
        assert port.queue_enabled(0)


def test_registers_through_configuration_space(ring: str) -> None:
    with drive(Echo(), "pci", ring) as driver:
        port = driver.port
        common = port.areas[p.VIRTIO_PCI_CAP_COMMON_CFG][0] - port.bars[4]
        assert port.window_load(4, common + p.VIRTIO_PCI_COMMON_STATUS, 1) == 15
        notify = port.areas[p.VIRTIO_PCI_CAP_NOTIFY_CFG][0] - port.bars[4]
        request = driver.submit(1, (b"window",), (6,), kick=False)
        port.window_store(4, notify + port.multiplier, 1, 2)
        assert driver.wait(request).written() == b"wodniw"
        # what leads nowhere does nothing
        for bar, offset, size in ((3, 0, 4), (4, 0x7FFFFFF0, 4), (4, 0, 3)):
            port.window_store(bar, offset, 0, size if size != 3 else 2)
            port._window_to(bar, offset, size)
            port.config_get(port.window + 16, 4)
        assert port.status() & 15 in (0, 15)


def test_what_a_function_looks_like(ring: str) -> None:
    with drive(Echo(), "pci", ring) as driver:
        port = driver.port
        assert port.device_type == 42
        assert port.config_get(8, 1) == 1  # revision
        assert port.config_get(0x2E, 2) >= 0x40
        lengths = {kind: length for kind, (_, length) in port.areas.items()}
        assert lengths[p.VIRTIO_PCI_CAP_NOTIFY_CFG] >= port.multiplier * 1 + 4
        assert lengths[p.VIRTIO_PCI_CAP_DEVICE_CFG] == len(CONFIG)


def test_an_iommu_is_insisted_on(transport: str) -> None:
    from pyvmm_memory import GuestMemoryMmap
    from pyvmm_virtio.transport import VirtioMmio, VirtioPci

    with GuestMemoryMmap.from_ranges([(0, 0x10000)]) as memory:
        device = Echo()
        kind = VirtioMmio if transport == "mmio" else VirtioPci
        control = kind(device, memory, iommu=True).control
        assert device.device_features >> f.VIRTIO_F_ACCESS_PLATFORM & 1
        for accepted in (False, True):
            control.write_status(0)
            control.write_status(s.ACKNOWLEDGE | s.DRIVER)
            control.accepted = 1 << f.VIRTIO_F_VERSION_1 | accepted << f.VIRTIO_F_ACCESS_PLATFORM
            control.write_status(s.ACKNOWLEDGE | s.DRIVER | s.FEATURES_OK)
            assert bool(control.read_status() & s.FEATURES_OK) == accepted


def test_memory_that_is_replaced_while_the_device_runs(transport: str, ring: str) -> None:
    from pyvmm_memory import GuestMemoryAtomic, GuestMemoryMmap, GuestRegionMmap

    first = GuestMemoryMmap.from_ranges([(0, 64 << 20)])
    cell = GuestMemoryAtomic(first)
    device = Echo()
    with drive(device, transport, ring, memory=first) as driver:
        device.attach(cell)
        assert driver.request(0, b"before", into=6) == b"erofeb"
        with cell.lock() as guard:
            guard.replace(first.insert_region(GuestRegionMmap(1 << 32, 0x1000)))
        request = driver.submit_buffers(0, [(driver.arena.put(b"hi"), 2, 0), (1 << 32, 2, 2)])
        driver.wait(request)
        assert bytes(cell.memory().get_slice(1 << 32, 2)) == b"ih"
    cell.memory().close()


class Slow(Echo):
    """Answers from a thread, when it is let."""

    def __init__(self) -> None:
        super().__init__()
        self.in_flight = InFlight()
        self.go = Event()
        self.inside = Event()
        self.threads: list[Thread] = []
        self.finished: list[bool] = []

    def process_queue(self, index: int) -> None:
        for chain in self.chains(index):
            self.threads.append(Thread(target=self.work, args=(index, self.epochs[index], chain)))
            self.threads[-1].start()

    def work(self, index: int, epoch: int, chain: DescriptorChain) -> None:
        count = 0
        with self.in_flight:  # type: ignore[union-attr] # set above
            if self.is_current(index, epoch):
                self.inside.set()
                self.go.wait(10)
                count = chain.writer(self.memory).write(b"late")
        self.finished.append(self.finish(index, epoch, chain, count))

    def join(self) -> None:
        for thread in self.threads:
            thread.join()


def test_answers_from_other_threads(start: Start) -> None:
    device = Slow()
    driver = start(device)
    device.go.set()
    requests = [driver.submit(0, (b"x",), (4,)) for _ in range(5)]
    for request in requests:
        assert driver.wait(request).written() == b"late"
    device.join()
    assert device.finished == [True] * 5


@pytest.mark.parametrize("one_queue", [False, True])
def test_a_reset_waits_for_workers_and_nothing_is_written_after_it(start: Start, one_queue: bool) -> None:
    device = Slow()
    driver = start(device)
    request = driver.submit(0, (b"x",), (4,))
    assert device.inside.wait(10)
    timer = Timer(0.05, device.go.set)
    timer.start()
    if one_queue:
        driver.port.reset_queue(0)
    else:
        driver.port.set_status(0)
    # the worker was inside when the reset began, and is not any more
    assert device.go.is_set()
    assert device.in_flight is not None
    assert len(device.in_flight) == 0
    addr = request.buffers[1][0]
    with driver.memory.get_slice(addr, 4) as view:
        view[:] = b"mine"
    device.join()
    timer.join()
    assert device.finished == [False]
    assert bytes(driver.memory.get_slice(addr, 4)) == b"mine"
    assert not driver.poll(0) if one_queue else True
    driver.reset()
    assert driver.wait(driver.submit(0, (b"x",), (4,))).written() == b"late"
    device.join()


def test_a_queue_that_never_ends_lets_others_in(start: Start) -> None:
    device = Echo((4, 4))
    driver = start(device, indirect=False, event_idx=False)
    turns: list[int] = []
    process = Echo.process_queue

    def more(index: int) -> None:
        turns.append(index)
        for chain in device.chains(index):
            device.complete(index, chain, 0)
            if len(turns) < 4:
                driver.poll(0)
                driver.submit(0, (b"a",), (), kick=False)

    device.process_queue = more  # type: ignore[method-assign]
    driver.submit(0, (b"a",))
    assert turns == [0, 0, 0, 0]
    device.process_queue = lambda index: process(device, index)  # type: ignore[method-assign]


def test_a_queue_that_never_ends_lets_the_rest_of_a_loop_in(start: Start) -> None:
    with EventLoop() as loop:
        device = Echo((4, 4))
        device.loop = loop
        driver = start(device, indirect=False, event_idx=False)
        turns: list[int] = []
        process = Echo.process_queue

        def more(index: int) -> None:
            turns.append(index)
            process(device, index)
            driver.poll(index)
            for _ in range(4):
                driver.submit(index, (b"a",), (), kick=False)

        device.process_queue = more  # type: ignore[method-assign]
        for queue in (0, 1, 1, 1, 1):
            driver.submit(queue, (b"a",), (), kick=False)
        driver.kick(0)
        driver.kick(1)
        for count in range(2, 8):
            assert len(turns) == count
            loop.run_once(0)
        assert set(turns) == {0, 1}
        driver.port.set_status(0)
        loop.run_once(0)
        assert len(turns) == count + 1


def test_callbacks_may_leave_more_than_a_turn_for_several_queues(start: Start) -> None:
    device = Echo((4, 4))
    driver = start(device, indirect=False)
    requests = [driver.submit(queue, (b"ab",), (), kick=False) for queue in (0, 1) for _ in range(4)]
    turns: list[int] = []

    def both() -> None:
        for index in (0, 1):
            device.process_queue(index)
            driver.poll()
            requests.extend(driver.submit(index, (b"ab",), (), kick=False) for _ in range(len(turns) or 3))
            turns.append(index)

    assert device.serve(both)
    driver.poll()
    assert len(requests) == 12
    assert all(request.done for request in requests)


class Flickering(SplitQueue):
    """A queue whose driver takes its offer back whenever we look, and makes it whenever we do not."""

    asked = 0

    def pop_descriptor_chain(self, memory: object) -> DescriptorChain | None:
        return None

    def enable_notification(self, memory: object) -> bool:
        self.asked += 1
        return True

    def disable_notification(self, memory: object) -> None:
        pass


def test_an_available_index_that_comes_and_goes_keeps_nobody() -> None:
    device = Echo((4,))
    device.attach(GuestMemoryMmap.from_ranges([(0, 0x1000)]))
    queue = Flickering(4)
    queue.set_ready(True)
    device.queues = [queue]
    device.active = True
    assert list(device.chains(0)) == []
    assert queue.asked == 4


def test_who_leaves_the_loop_early_comes_back_for_the_rest(start: Start) -> None:
    device = Echo()
    driver = start(device)

    def one(index: int) -> None:
        for chain in device.chains(index):
            device.complete(index, chain, 0)
            return

    device.process_queue = one  # type: ignore[method-assign]
    requests = [driver.submit(0, (b"a",), (1,), kick=False) for _ in range(2)]
    driver.kick(0)
    driver.poll()
    assert [request.done for request in requests] == [True, False]
    assert device.serve(one, 0)
    driver.poll()
    assert requests[1].done
    assert device.serve(one, 0)  # nothing is left, so the driver notifies again
    assert driver.wait(driver.submit(0, (b"a",), (1,))).done


def test_misuse_is_told() -> None:
    device = Echo()
    with pytest.raises(VirtioUsageError, match="no memory"):
        _ = device.memory
    with pytest.raises(VirtioUsageError, match="configuration"):
        device.update_config(20, bytes(8))
    for transport, ring, irq in (
        ("isa", "split", ""),
        ("mmio", "round", ""),
        ("mmio", "split", "msix"),
        ("pci", "split", "edge"),
    ):
        with pytest.raises(VirtioUsageError):
            drive(Echo(), transport, ring, irq=irq)
    for size in (0, -1):
        with pytest.raises(VirtioUsageError, match="descriptors"):
            drive(Echo(), queue_size=size)
    for nothing in ("tap0", None, Echo):
        with pytest.raises(VirtioUsageError, match="no device"):
            drive(nothing)  # type: ignore[arg-type]
    with pytest.raises(VirtioUsageError, match="packed"):
        drive(Echo(ring_features=1 << f.VIRTIO_F_VERSION_1), ring="packed")

    class Typeless(Echo):
        device_type = 0x50

    with pytest.raises(VirtioUsageError, match="device type 80"):
        drive(Typeless(), "pci")
    assert "Echo inactive" in repr(device)


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_requests_that_cannot_be_sent_are_told(ring: str) -> None:
    with drive(Echo(), ring=ring, queue_size=4, indirect=False) as driver:
        with pytest.raises(VirtioUsageError, match="at least one buffer"):
            driver.request(0)
        with pytest.raises(RingFull, match="poll, then try again"):
            driver.submit(0, (b"a",) * 5)
        assert driver.request(0, b"a", into=1) == b"a"


def test_where_to_notify(transport: str) -> None:
    with drive(Echo(), transport) as driver:
        found = driver.transport.notify_addresses()
        assert [each.queue for each in found] == [0, 1]
        if transport == "mmio":
            assert [(each.offset, each.length, each.datamatch) for each in found] == [(0x50, 4, 0), (0x50, 4, 1)]
        else:
            assert [(each.offset, each.length, each.datamatch) for each in found] == [(0, 0, None), (4, 0, None)]
            moves: list[int | None] = []
            driver.transport.on_notify_moved = moves.append
            base = driver.transport.notify_base()
            driver.port.config_set(4, 0, 2)
            driver.port.config_set(4, 6, 2)
            assert moves == [None, base]
        assert "NotifyAddress(0" in repr(found[0])
    with drive(Echo(), "mmio", notification_data=True) as driver:
        assert driver.transport.notify_addresses() == []


def test_power_on_reset(start: Start) -> None:
    device = Echo()
    driver = start(device)
    driver.request(0, b"a", into=1)
    driver.transport.reset()
    assert not device.active
    assert device.resets
