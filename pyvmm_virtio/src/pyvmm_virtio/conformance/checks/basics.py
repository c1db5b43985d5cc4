"""Status, features, reset, configuration: chapters 2.1 to 2.6, 3 and 6."""

from __future__ import annotations

from pyvmm_virtio.conformance.bench import Bench, NotHere, ensure
from pyvmm_virtio.conformance.checks.registry import check
from pyvmm_virtio.constants import features as f
from pyvmm_virtio.driver.driver import RING_BITS
from pyvmm_virtio.transport import status as s

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VERSION_1 = 1 << f.VIRTIO_F_VERSION_1
RING_MASK = sum(1 << bit for bit in RING_BITS)
BEFORE = s.ACKNOWLEDGE | s.DRIVER


def negotiate(driver: Any, features: int) -> bool:  # noqa: ANN401 - any driver
    """Offer to accept some features; returns whether the device agrees."""
    port = driver.port
    port.set_status(0)
    port.set_status(s.ACKNOWLEDGE)
    port.set_status(BEFORE)
    port.set_driver_features(features)
    port.set_status(BEFORE | s.FEATURES_OK)
    return bool(port.status() & s.FEATURES_OK)


@check()
def quiet_before_driver_ok(bench: Bench) -> None:
    """Set everything up, offer and notify, but do not say DRIVER_OK."""
    with bench.driver(start=False) as driver:
        offered = driver.port.device_features()
        driver.features = offered & driver.known
        ensure(negotiate(driver, driver.features), "the device refuses what the driver knows")
        index = 0
        while size := driver.port.queue_max(index):
            driver.add_queue(index, min(size, 64))
            index += 1
        request = bench.submit(driver, kick=False)
        driver.kick(request.queue, always=True)
        driver.poll()
        ensure(not request.done, "a buffer was used before DRIVER_OK")
        ensure(not driver.interrupts, "the driver was notified before DRIVER_OK")
        driver.port.set_status(BEFORE | s.FEATURES_OK | s.DRIVER_OK)
        driver.kick(request.queue, always=True)
        driver.wait(request, timeout=2)


@check()
def needs_reset_is_told(bench: Bench) -> None:
    """Offer a buffer outside memory; a device that then needs a reset has to say so."""
    with bench.driver() as driver:
        driver.submit_buffers(bench.queue(driver), [(1 << 45, 16, 0), (1 << 45, 16, 2)])
        driver.poll()
        if not driver.needs_reset:
            raise NotHere("the device does not need a reset after a buffer outside memory")
        ensure(driver.config_changes == 1, f"{driver.config_changes} notifications of a changed configuration")
        driver.reset()
        ensure(not driver.needs_reset, "it still needs a reset after one")
        bench.request(driver)


@check()
def everything_offered_works(bench: Bench) -> None:
    """Accept all that is offered, save the other ring, and have a request answered."""
    with bench.driver(start=False) as driver:
        everything = driver.port.device_features()
        if bench.ring == "split":
            everything &= ~(1 << f.VIRTIO_F_RING_PACKED)
        ensure(negotiate(driver, everything), f"the features it offers, {everything:#x}, are refused together")
        driver.know(everything)
        driver.start()
        bench.request(driver)


@check()
def subsets_of_features(bench: Bench) -> None:
    """Accept the least, and everything but one feature at a time: each is taken, or FEATURES_OK is not set."""
    with bench.driver(start=False) as driver:
        offered = driver.port.device_features()
        ensure(negotiate(driver, VERSION_1), "VERSION_1 alone is refused")
        for bit in range(64):
            if offered >> bit & 1 and 1 << bit != VERSION_1:
                # whichever it is, the device may not fall over
                negotiate(driver, offered & ~(1 << bit))
        driver.know(offered & RING_MASK & driver.known)
        driver.start()
        bench.request(driver)


@check()
def unoffered_features_are_refused(bench: Bench) -> None:
    """Accept something that was not offered, and leave VERSION_1 out."""
    with bench.driver(start=False) as driver:
        offered = driver.port.device_features()
        missing = next(bit for bit in range(63, -1, -1) if not offered >> bit & 1)
        ensure(not negotiate(driver, VERSION_1 | 1 << missing), f"feature {missing} is taken, which was not offered")


@check()
def reset_ends_everything(bench: Bench) -> None:
    """Reset with something offered, and look that nothing happens any more."""
    with bench.driver() as driver:
        bench.request(driver)
        request = bench.submit(driver, kick=False)
        driver.port.set_status(0)
        ensure(driver.port.status() == 0, f"status {driver.port.status():#x} after a reset")
        before = driver.interrupts
        areas = [bytes(driver.memory.get_slice(ring.device_area, 4)) for ring in driver.queues]
        for index in range(len(driver.queues)):
            ensure(not driver.port.queue_enabled(index), f"queue {index} is enabled after a reset")
            driver.kick(index, always=True)
        after = [bytes(driver.memory.get_slice(ring.device_area, 4)) for ring in driver.queues]
        ensure(not request.done and areas == after, "a queue was touched after a reset")
        ensure(driver.interrupts == before, "the driver was notified after a reset")


@check()
def configuration_can_be_read_early(bench: Bench) -> None:
    """Read the configuration at the very beginning, and compare it with later."""
    device = bench.make()
    if not device.config:
        raise NotHere("the device has no configuration space")
    with bench.driver(device, start=False) as driver:
        driver.port.set_status(0)
        early = driver.config(0, len(device.config))
        ensure(early == bytes(device.config), "it reads differently before negotiation")


@check()
def generation_changes(bench: Bench) -> None:
    """Let the device change its configuration while the driver reads it."""
    device = bench.make()
    if not device.config:
        raise NotHere("the device has no configuration space")
    with bench.driver(device) as driver:
        for _ in range(300):  # 8 bits of it must not come round
            before = driver.port.generation()
            driver.port.load(driver.port.config_address(), 1)
            device.config_changed()
            ensure(driver.port.generation() != before, "the generation stays the same over a change")


@check()
def queue_reset(bench: Bench) -> None:
    """Reset a queue with something offered, set it up smaller, and go on."""
    with bench.driver() as driver:
        if not driver.has(f.VIRTIO_F_RING_RESET):
            raise NotHere("the device does not offer RING_RESET")
        queue = bench.queue(driver)
        bench.request(driver)
        largest = driver.port.queue_max(queue)
        request = bench.submit(driver, kick=False)
        driver.port.reset_queue(queue)
        ensure(not driver.port.queue_enabled(queue), "the queue is enabled after its reset")
        before = driver.interrupts
        driver.kick(queue, always=True)
        driver.poll()
        ensure(not request.done and driver.interrupts == before, "something of the queue was executed after its reset")
        ensure(driver.port.queue_max(queue) == largest, "the largest size is another after a reset")
        driver.add_queue(queue, 16)
        for seed in range(40):
            bench.request(driver, seed)


@check()
def offers_version_1(bench: Bench) -> None:
    """Look at the features offered."""
    with bench.driver(start=False) as driver:
        offered = driver.port.device_features()
        ensure(offered & VERSION_1, "VERSION_1 is not offered")
        ensure(not offered >> f.VIRTIO_F_SR_IOV & 1, "SR_IOV is offered without its capability")


@check()
def in_order(bench: Bench) -> None:
    """Negotiate IN_ORDER, which the device is made to offer, and send many at once."""
    with bench.driver(in_order=True) as driver:
        done: list[object] = []
        driver.completed = done.append
        requests = [bench.submit(driver, seed, kick=False) for seed in range(8)]
        driver.kick(requests[0].queue, always=True)
        driver.wait_until(lambda: len(done) == len(requests), 2)
        ensure(done == requests, "buffers come back in another order than they were offered")
