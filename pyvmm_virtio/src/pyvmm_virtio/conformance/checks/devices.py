"""Block, console and entropy devices: chapters 5.2, 5.3 and 5.4."""

from __future__ import annotations

from pyvmm_virtio.conformance.bench import Bench, NotHere, ensure
from pyvmm_virtio.conformance.checks.basics import RING_MASK
from pyvmm_virtio.conformance.checks.registry import check
from pyvmm_virtio.constants import block as b
from pyvmm_virtio.constants import console as c
from pyvmm_virtio.driver.block import BlockError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

IOERR, UNSUPP = b.VIRTIO_BLK_S_IOERR, b.VIRTIO_BLK_S_UNSUPP
ANY_RING = ("split",)
WRITEBACK, EMERG_WR = 32, 8


def refused(function: Callable[..., object], *arguments: object, **options: object) -> int:
    """Return the status of a block request that is refused, 0 where it is not."""
    try:
        function(*arguments, **options)
    except BlockError as error:
        return error.status
    return 0


@check()
def block_features(bench: Bench) -> None:
    """Look at features and padding."""
    with bench.driver(start=False) as driver:
        offered = driver.port.device_features()
        flush, wce = offered >> b.VIRTIO_BLK_F_WCE & 1, offered >> b.VIRTIO_BLK_F_CONFIG_WCE & 1
        ensure(flush or not wce, "CONFIG_WCE is offered without FLUSH")
        ensure(driver.config(33, 1) == b"\0", "unused0 is not 0")
        ensure(driver.config(57, 3) == bytes(3), "unused1 is not 0")


@check()
def block_writeback(bench: Bench) -> None:
    """Negotiate CONFIG_WCE without FLUSH."""
    with bench.driver(start=False) as driver:
        if not driver.port.device_features() >> b.VIRTIO_BLK_F_CONFIG_WCE & 1:
            raise NotHere("CONFIG_WCE is not offered")
        driver.know(driver.known & RING_MASK | 1 << b.VIRTIO_BLK_F_CONFIG_WCE)
        driver.start()
        ensure(driver.config(WRITEBACK, 1) == b"\0", "writeback is not 0")


@check()
def block_read_only(bench: Bench) -> None:
    """Write to a disk that is read-only."""
    device = bench.make()
    disk = getattr(device, "disk", None)
    if not device.device_features >> b.VIRTIO_BLK_F_RO & 1:
        if disk is None or type(device).__module__.partition(".")[0] != "pyvmm_virtio":
            raise NotHere("the disk is not read-only")
        from pyvmm_virtio.backends.memory import MemoryDisk
        from pyvmm_virtio.devices import Block

        device = Block(MemoryDisk(bytes(1 << 16)))
    with bench.driver(device) as driver:
        before = driver.read(1)
        ensure(refused(driver.write, 1, b"\xa5" * 512) == IOERR, "a write is not refused with IOERR")
        ensure(driver.read(1) == before, "something was written")


@check()
def block_ranges(bench: Bench) -> None:
    """Discard and write zeroes, with flags right and wrong."""
    with bench.driver() as driver:
        if driver.has(b.VIRTIO_BLK_F_DISCARD):
            ensure(refused(driver.discard, 0, 8, flags=2) == UNSUPP, "an unknown flag is not refused")
            ensure(refused(driver.discard, 0, 8, flags=1) == UNSUPP, "unmap with discard is not refused")
        if driver.has(b.VIRTIO_BLK_F_WRITE_ZEROES):
            kind = b.VIRTIO_BLK_T_WRITE_ZEROES
            segment = bytes(8) + (8).to_bytes(4, "little") + (4).to_bytes(4, "little")
            request = driver.wait(driver.submit_request(kind, 0, (segment,)))
            ensure(driver.status_of(request) == UNSUPP, "an unknown flag is not refused")
            for unmap in (False, True):
                driver.write(8, b"\xa5" * 1024)
                driver.write_zeroes(8, 1, unmap=unmap)
                ensure(driver.read(8, 2) == bytes(512) + b"\xa5" * 512, "it does not read as zeros, or too much does")
        elif not driver.has(b.VIRTIO_BLK_F_DISCARD):
            raise NotHere("neither DISCARD nor WRITE_ZEROES is offered")


@check()
def block_unknown_requests(bench: Bench) -> None:
    """Send the requests of zoned devices, and one that nobody knows."""
    with bench.driver() as driver:
        for kind in (15, 16, 18, 20, 22, 24, 26, 0x7777):
            request = driver.wait(driver.submit_request(kind, 0, (bytes(16),)))
            ensure(driver.status_of(request) == UNSUPP, f"request {kind} is not refused with UNSUPP")


@check()
def console_emergency(bench: Bench) -> None:
    """Write a character before anything is set up."""
    device: Any = bench.make()
    printed: list[bytes] = []
    if hasattr(device, "ports"):
        device.ports[0].backend.write = printed.append
    with bench.driver(device, start=False) as driver:
        if not driver.port.device_features() >> c.VIRTIO_CONSOLE_F_EMERG_WRITE & 1:
            raise NotHere("EMERG_WRITE is not offered")
        driver.port.set_status(0)
        driver.set_config(EMERG_WR, ord("x"), 4)
        ensure(not driver.needs_reset, "it needs a reset after an emergency write")
        ensure(printed == [b"x"] or not hasattr(device, "ports"), f"it printed {printed}")


@check()
def console_ports(bench: Bench) -> None:
    """Say that the driver is ready, twice, and see which ports come."""
    with bench.driver(plain=False) as driver:
        if not driver.multiport:
            raise NotHere("MULTIPORT is not offered")
        driver.wait_until(lambda: any(event[1] == c.VIRTIO_CONSOLE_PORT_ADD for event in driver.events), 2)
        added = [port for port, event, _, _ in driver.events if event == c.VIRTIO_CONSOLE_PORT_ADD]
        most = driver.config_value(4, 4)
        ensure(len(set(added)) == len(added), f"a port was added twice: {added}")
        ensure(all(port < most for port in added), f"ports {added} of at most {most}")


@check()
def entropy(bench: Bench) -> None:
    """Ask for random bytes, one and many."""
    with bench.driver() as driver:
        for size in (1, 2, 64, 4096):
            ensure(0 < len(driver.read(size)) <= size, f"no byte for a buffer of {size}")
        ensure(driver.read_exact(16) != driver.read_exact(16), "the same bytes twice")
