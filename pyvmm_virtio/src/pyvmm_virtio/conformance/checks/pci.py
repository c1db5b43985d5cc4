"""The PCI transport: chapter 4.1."""

from __future__ import annotations

from pyvmm_device.pci import config_space as cs
from pyvmm_virtio.conformance.bench import Bench, ensure, events_of_a_request
from pyvmm_virtio.conformance.checks.registry import check
from pyvmm_virtio.constants import features as f
from pyvmm_virtio.constants import pci as p
from pyvmm_virtio.transport.pci import VENDOR_ID

PCI = ("pci",)
NO_VECTOR = p.VIRTIO_MSI_NO_VECTOR


@check(PCI)
def pci_identity(bench: Bench) -> None:
    """Read the header."""
    device = bench.make()
    with bench.driver(device, start=False) as driver:
        get = driver.port.config_get
        ensure(get(cs.VENDOR_ID, 2) == VENDOR_ID, "another vendor")
        ensure(get(cs.DEVICE_ID, 2) == 0x1040 + device.device_type, "another device id")
        ensure(get(cs.REVISION, 1) >= 1, "a revision of legacy devices")


@check(PCI)
def pci_fields(bench: Bench) -> None:
    """Read and write the common configuration."""
    with bench.driver() as driver:
        port = driver.port
        for select in (2, 3, 0xFFFFFFFF):
            port.set(p.VIRTIO_PCI_COMMON_DFSELECT, select, 4)
            ensure(port.get(p.VIRTIO_PCI_COMMON_DF, 4) == 0, f"features from bit {32 * select} on")
        seen = 0
        for half in (0, 1):
            port.set(p.VIRTIO_PCI_COMMON_GFSELECT, half, 4)
            seen |= port.get(p.VIRTIO_PCI_COMMON_GF, 4) << 32 * half
        ensure(seen == driver.features, f"driver_feature shows {seen:#x} of {driver.features:#x}")
        ensure(port.queue_max(len(driver.queues)) == 0, "a queue beyond the last has a size")
        for index, ring in enumerate(driver.queues):
            size = port.queue_max(index)
            ensure(driver.has(f.VIRTIO_F_RING_PACKED) or not size & (size - 1), f"queue {index} has size {size}")
            low, high = port.get(p.VIRTIO_PCI_COMMON_Q_DESCLO, 4), port.get(p.VIRTIO_PCI_COMMON_Q_DESCHI, 4)
            ensure(low | high << 32 == ring.desc, "halves of a 64-bit field are not what was written")
            ensure(port.get(p.VIRTIO_PCI_COMMON_Q_RESET, 2) == 0, "queue_reset is not 0")


@check(PCI)
def pci_capabilities(bench: Bench) -> None:
    """Look at the list of capabilities."""
    device = bench.make()
    with bench.driver(device) as driver:
        port = driver.port
        wanted = {p.VIRTIO_PCI_CAP_COMMON_CFG: 4, p.VIRTIO_PCI_CAP_NOTIFY_CFG: 4, p.VIRTIO_PCI_CAP_ISR_CFG: 1}
        if device.config:
            wanted[p.VIRTIO_PCI_CAP_DEVICE_CFG] = 4
        for kind, alignment in wanted.items():
            ensure(kind in port.areas, f"no capability of type {kind}")
            ensure((port.areas[kind][0] - port.bars[4]) % alignment == 0, f"capability {kind} is not aligned")
        ensure(port.window, "no window in configuration space")
        multiplier, length = port.multiplier, port.areas[p.VIRTIO_PCI_CAP_NOTIFY_CFG][1]
        ensure(not multiplier or not multiplier & (multiplier - 1), f"the multiplier is {multiplier}")
        for index in range(len(driver.queues)):
            port.queue_max(index)
            offset = port.get(p.VIRTIO_PCI_COMMON_Q_NOFF, 2)
            ensure(length >= offset * multiplier + 2, f"no room to notify queue {index}")
        at = port.config_get(cs.CAPABILITIES, 1)
        sizes = {p.VIRTIO_PCI_CAP_NOTIFY_CFG: 20, p.VIRTIO_PCI_CAP_PCI_CFG: 20, p.VIRTIO_PCI_CAP_SHARED_MEMORY_CFG: 24}
        while at:
            if port.config_get(at, 1) == cs.CAP_VENDOR:
                kind = port.config_get(at + 3, 1)
                ensure(port.config_get(at + 2, 1) == sizes.get(kind, 16), f"cap_len of type {kind}")
            at = port.config_get(at + 1, 1)


@check(PCI)
def pci_isr(bench: Bench) -> None:
    """Interrupt by INTx, and for the configuration by MSI-X."""
    device = bench.make()
    with bench.driver(device, irq="intx") as driver:
        driver._take_events = lambda: None
        events = events_of_a_request(bench, driver)
        status = driver.port.config_get(cs.STATUS, 2)
        ensure(status & cs.STATUS_INTERRUPT, "no Interrupt Status in the header")
        ensure(driver.port.take_events() == events, "no queue bit, or another bit")
        ensure(driver.port.take_events() == 0, "ISR status is not 0 after it was read")
        ensure(not driver.port.config_get(cs.STATUS, 2) & cs.STATUS_INTERRUPT, "Interrupt Status stays")
        device.config_changed()
        ensure(driver.port.take_events() == 2, "no configuration bit")
    device = bench.make()
    with bench.driver(device) as driver:
        device.config_changed()
        ensure(driver.port.take_events() & 2, "no configuration bit with MSI-X")


@check(PCI)
def pci_window(bench: Bench) -> None:
    """Reach the status, and notify a queue, through configuration space."""
    with bench.driver() as driver:
        port = driver.port
        bar = port.bars[4]
        at = port.areas[p.VIRTIO_PCI_CAP_COMMON_CFG][0] - bar + p.VIRTIO_PCI_COMMON_STATUS
        ensure(port.window_load(4, at, 1) == port.status(), "the window shows something else")
        request = bench.submit(driver, kick=False)
        port.queue_max(request.queue)
        offset = port.get(p.VIRTIO_PCI_COMMON_Q_NOFF, 2) * port.multiplier
        notify = port.areas[p.VIRTIO_PCI_CAP_NOTIFY_CFG][0] - bar + offset
        port.window_store(4, notify, request.queue, 2)
        driver.wait(request, timeout=2)


@check(PCI)
def pci_vectors(bench: Bench) -> None:
    """Map events to vectors, to one that does not exist, and to none."""
    device = bench.make()
    with bench.driver(device) as driver:
        port = driver.port
        queue = bench.queue(driver)
        for vector in (0, port.vectors - 1, NO_VECTOR):
            for register in (p.VIRTIO_PCI_COMMON_MSIX, p.VIRTIO_PCI_COMMON_Q_MSIX):
                port.queue_max(queue)
                port.set(register, vector, 2)
                ensure(port.get(register, 2) == vector, f"vector {vector} cannot be mapped")
            driver.vectors.clear()
            bench.request(driver)
            device.config_changed()
            # two at least: the request may have changed the configuration too
            came = {at: min(count, 2) for at, count in driver.vectors.items()}
            wanted = {} if vector == NO_VECTOR else {vector: 2}
            ensure(came == wanted, f"with vector {vector:#x} there came {driver.vectors}")
        port.set(p.VIRTIO_PCI_COMMON_MSIX, port.vectors, 2)
        ensure(port.get(p.VIRTIO_PCI_COMMON_MSIX, 2) == NO_VECTOR, "a vector was mapped that does not exist")
        port.set(p.VIRTIO_PCI_COMMON_MSIX, 0, 2)
        port.set_status(0)
        port.queue_max(queue)
        mapped = port.get(p.VIRTIO_PCI_COMMON_MSIX, 2), port.get(p.VIRTIO_PCI_COMMON_Q_MSIX, 2)
        ensure(mapped == (NO_VECTOR, NO_VECTOR), "an event is mapped after a reset")
