"""The MMIO transport: chapter 4.2."""

from __future__ import annotations

from pyvmm_virtio.conformance.bench import Bench, ensure, events_of_a_request
from pyvmm_virtio.conformance.checks.registry import check
from pyvmm_virtio.constants import mmio as m
from pyvmm_virtio.transport.mmio import MAGIC

MMIO = ("mmio",)


@check(MMIO)
def mmio_identity(bench: Bench) -> None:
    """Read the first registers."""
    with bench.driver(start=False) as driver:
        ensure(driver.port.get(m.VIRTIO_MMIO_MAGIC_VALUE) == MAGIC, "another magic value")
        ensure(driver.port.get(m.VIRTIO_MMIO_VERSION) == 2, "another version")
        ensure(driver.port.get(m.VIRTIO_MMIO_DEVICE_ID) != 0, "device 0 is a placeholder")


@check(MMIO)
def mmio_events(bench: Bench) -> None:
    """Have a request answered and watch InterruptStatus."""
    device = bench.make()
    with bench.driver(device) as driver:
        get, set_ = driver.port.get, driver.port.set
        driver._take_events = lambda: None
        ensure(get(m.VIRTIO_MMIO_INTERRUPT_STATUS) == 0, "an event that did not take place")
        events = events_of_a_request(bench, driver)
        ensure(get(m.VIRTIO_MMIO_INTERRUPT_STATUS) == events, "used buffers are no event, or something else is")
        ensure(get(m.VIRTIO_MMIO_INTERRUPT_STATUS) == events, "the event went away before it was acknowledged")
        device.config_changed()
        ensure(get(m.VIRTIO_MMIO_INTERRUPT_STATUS) == 3, "a changed configuration is no event")
        set_(m.VIRTIO_MMIO_INTERRUPT_ACK, 1)
        ensure(get(m.VIRTIO_MMIO_INTERRUPT_STATUS) == 2, "acknowledging one event does not clear it alone")
        driver.port.set_status(0)
        ensure(get(m.VIRTIO_MMIO_INTERRUPT_STATUS) == 0, "an event survives a reset")
        ensure(not driver.port.queue_enabled(0), "QueueReady survives a reset")


@check(MMIO)
def disabled_queues_rest(bench: Bench) -> None:
    """Write 0 to QueueReady, then notify."""
    with bench.driver() as driver:
        queue = bench.queue(driver)
        request = bench.submit(driver, kick=False)
        driver.port.set(m.VIRTIO_MMIO_QUEUE_SEL, queue)
        driver.port.set(m.VIRTIO_MMIO_QUEUE_READY, 0)
        ensure(driver.port.get(m.VIRTIO_MMIO_QUEUE_READY) == 0, "QueueReady stays 1")
        driver.kick(queue, always=True)
        driver.poll()
        ensure(not request.done, "a queue was served whose QueueReady is 0")


@check()
def shared_memory_is_bounded(bench: Bench) -> None:
    """Ask for every region, and for those that are none."""
    device = bench.make()
    regions = {region.id for region in device.shared_memory}
    ensure(len(regions) == len(device.shared_memory), "two regions have one id")
    with bench.driver(device, start=False) as driver:
        for number in range(256):
            found = driver.port.shared_memory(number)
            ensure((found is not None) == (number in regions), f"region {number} is there and should not be, or not")
            if found is not None and bench.transport == "pci":
                bars = [(at, at + driver.port.sizes[index]) for index, at in driver.port.bars.items()]
                inside = any(begin <= found[0] and found[0] + found[1] <= end for begin, end in bars)
                ensure(inside, f"region {number} leaves its BAR")
