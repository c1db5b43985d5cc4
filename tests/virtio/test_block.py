"""The block device, driven as a guest does, by both transports and both rings."""

from __future__ import annotations

import errno
import mmap
import os
import struct
import subprocess
import threading

import pytest
from guest.host import install
from tests.virtio.raw_disk import raw_file

from pyvmm_device import EventLoop
from pyvmm_virtio.backends.block import FLUSH, Topology
from pyvmm_virtio.backends.memory import MemoryDisk
from pyvmm_virtio.backends.nbd import QemuNbdServer
from pyvmm_virtio.backends.raw import RawFile
from pyvmm_virtio.backends.workers import WorkerDisk
from pyvmm_virtio.constants import block as b
from pyvmm_virtio.devices import Block
from pyvmm_virtio.driver import drive
from pyvmm_virtio.driver.block import BlockError
from pyvmm_virtio.errors import VirtioUsageError
from pyvmm_virtio.rate_limiter import RateLimiter, TokenBucket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from pyvmm_virtio.backends.block import Done
    from pyvmm_virtio.driver.block import BlockDriver

SIZE = 1 << 20
BOTH = [(transport, ring) for transport in ("mmio", "pci") for ring in ("split", "packed")]
OK, IOERR, UNSUPP = b.VIRTIO_BLK_S_OK, b.VIRTIO_BLK_S_IOERR, b.VIRTIO_BLK_S_UNSUPP


class FailingDisk(MemoryDisk):
    """Fails where it is told to, and counts flushes."""

    def __init__(self, size: int) -> None:
        super().__init__(size)
        self.fail = False
        self.flushes = 0

    def _try(self) -> None:
        if self.fail:
            raise OSError(errno.EIO, "the disk is on fire")

    def readv(self, views: Sequence[memoryview], offset: int) -> None:
        self._try()
        super().readv(views, offset)

    def writev(self, views: Sequence[memoryview], offset: int) -> None:
        self._try()
        super().writev(views, offset)

    def flush(self) -> None:
        self._try()
        self.flushes += 1

    def discard(self, offset: int, length: int) -> None:
        self._try()
        super().discard(offset, length)


def status(
    driver: BlockDriver, kind: int, sector: int = 0, data: Sequence[bytes] = (), into: Sequence[int] = ()
) -> int:
    request = driver.submit_request(kind, sector, data, into)
    driver.wait(request)
    writable = sum(length for _, length, flags in request.buffers if flags)
    answer = driver.status_of(request)
    # 2.7.8.2: so much was written from the first buffer on; of a request that failed that is nothing, and the status
    # is not counted where there is room before it
    assert request.length <= writable
    assert request.length == writable or answer or kind not in (b.VIRTIO_BLK_T_IN, b.VIRTIO_BLK_T_OUT) or data
    request.release()
    return answer


class Subject:
    """A disk that holds something, which is seen here as it changes: in memory, in a file, and in a file behind C."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def __call__(self, content: bytes, *, serial: str = "", queues: int = 1) -> tuple[bytearray | mmap.mmap, Block]:
        if self.kind == "memory":
            held = bytearray(content)
            return held, Block(MemoryDisk(held), serial=serial, queues=queues)
        disk = raw_file(content)
        device = Block(disk, data_plane=self.kind == "compiled", serial=serial, queues=queues)
        return mmap.mmap(disk.fileno(), len(content)), device


@pytest.fixture(params=["memory", "file", "compiled"])
def make(request: pytest.FixtureRequest) -> Subject:
    return Subject(request.param)


@pytest.mark.parametrize(("transport", "ring"), BOTH)
def test_a_disk_from_end_to_end(make: Subject, transport: str, ring: str) -> None:
    content, device = make(os.urandom(SIZE), serial="serial-17", queues=2)
    with drive(device, transport, ring) as driver:
        assert driver.capacity == SIZE // 512
        assert driver.read(3, 9) == content[3 * 512 : 12 * 512]
        driver.write(100, b"\x5a" * 4096, queue=1)
        assert content[51200 : 51200 + 4096] == b"\x5a" * 4096
        assert driver.read(100, 8, queue=1) == b"\x5a" * 4096
        driver.flush()
        driver.discard(0, 8)
        driver.write_zeroes(8, 8)
        driver.write_zeroes(16, 8, unmap=True)
        assert content[: 24 * 512] == bytes(24 * 512)
        assert driver.get_id() == b"serial-17"


@pytest.mark.parametrize("ring", ["split", "packed"])
def test_requests_many_deep(make: Subject, ring: str) -> None:
    content, device = make(os.urandom(SIZE))
    with drive(device, "mmio", ring) as driver:
        for _ in range(5):
            requests = [driver.submit_read(sector, kick=False) for sector in range(64)]
            driver.kick(0)
            for sector, request in enumerate(requests):
                assert driver.finish(request) == content[sector * 512 : sector * 512 + 512]


def test_header_data_and_status_may_lie_anyhow(make: Subject) -> None:
    content, device = make(os.urandom(SIZE))
    with drive(device) as driver:
        header = struct.pack("<IIQ", b.VIRTIO_BLK_T_OUT, 0, 7)
        data = os.urandom(1024)
        for readable in ([header + data], [header[:3], header[3:], data[:1], data[1:]]):
            content[7 * 512 : 9 * 512] = bytes(1024)
            assert driver.request(0, *readable, into=1) == b"\0"
            assert content[7 * 512 : 9 * 512] == data
        header = struct.pack("<IIQ", b.VIRTIO_BLK_T_IN, 0, 7)
        assert driver.request(0, header, into=1025) == data + b"\0"
        request = driver.submit(0, (header,), (5, 1000, 20))
        driver.wait(request)
        assert request.written() == data + b"\0"


@pytest.mark.parametrize(
    ("kind", "sector", "data", "into", "expected"),
    [
        (b.VIRTIO_BLK_T_IN, SIZE // 512, (), (512,), IOERR),
        (b.VIRTIO_BLK_T_IN, SIZE // 512 - 1, (), (1024,), IOERR),
        (b.VIRTIO_BLK_T_IN, (1 << 64) - 1, (), (512,), IOERR),
        (b.VIRTIO_BLK_T_IN, 0, (), (511,), IOERR),
        (b.VIRTIO_BLK_T_IN, 0, (), (), OK),
        (b.VIRTIO_BLK_T_IN, 0, (bytes(512),), (), IOERR),
        (b.VIRTIO_BLK_T_IN, 0, (bytes(1),), (512,), IOERR),
        (b.VIRTIO_BLK_T_OUT, SIZE // 512, (bytes(512),), (), IOERR),
        (b.VIRTIO_BLK_T_OUT, (1 << 55), (bytes(512),), (), IOERR),
        (b.VIRTIO_BLK_T_OUT, 0, (bytes(100),), (), IOERR),
        (b.VIRTIO_BLK_T_OUT, 0, (bytes(512),), (64,), OK),
        (b.VIRTIO_BLK_T_SCSI_CMD, 0, (), (), UNSUPP),
        (b.VIRTIO_BLK_T_SECURE_ERASE, 0, (bytes(16),), (), UNSUPP),
        (0x12345678, 0, (bytes(16),), (100,), UNSUPP),
        (b.VIRTIO_BLK_T_FLUSH, 99, (), (), OK),
        (b.VIRTIO_BLK_T_GET_ID, 0, (), (5,), OK),
        (b.VIRTIO_BLK_T_GET_ID, 0, (), (100,), OK),
        (b.VIRTIO_BLK_T_DISCARD, 0, (), (), IOERR),
        (b.VIRTIO_BLK_T_DISCARD, 0, (bytes(15),), (), IOERR),
        (b.VIRTIO_BLK_T_DISCARD, 0, (struct.pack("<QII", 0, 1, 1),), (), UNSUPP),
        (b.VIRTIO_BLK_T_DISCARD, 0, (struct.pack("<QII", 0, 1, 0) * 129,), (), IOERR),
        (b.VIRTIO_BLK_T_DISCARD, 0, (struct.pack("<QII", 0, (1 << 22) + 1, 0),), (), IOERR),
        (b.VIRTIO_BLK_T_DISCARD, 0, (struct.pack("<QII", SIZE // 512, 1, 0),), (), IOERR),
        (b.VIRTIO_BLK_T_DISCARD, 0, (struct.pack("<QII", 5, 0, 0),), (), OK),
        (b.VIRTIO_BLK_T_WRITE_ZEROES, 0, (struct.pack("<QII", 0, 1, 2),), (), UNSUPP),
        (b.VIRTIO_BLK_T_WRITE_ZEROES, 0, (struct.pack("<QII", (1 << 64) - 1, 2, 0),), (), IOERR),
    ],
)
def test_answers(
    make: Subject, kind: int, sector: int, data: tuple[bytes, ...], into: tuple[int, ...], expected: int
) -> None:
    content, device = make(b"\x77" * SIZE)
    with drive(device) as driver:
        assert status(driver, kind, sector, data, into) == expected
        if expected != OK:
            assert content[:] == b"\x77" * SIZE
        assert driver.read(0)


def test_a_refused_list_of_ranges_changes_nothing() -> None:
    content = bytearray(b"\x77" * SIZE)
    with drive(Block(MemoryDisk(content))) as driver:
        ranges = struct.pack("<QIIQII", 0, 8, 0, SIZE // 512 - 1, 2, 0)
        assert status(driver, b.VIRTIO_BLK_T_WRITE_ZEROES, 0, (ranges,)) == IOERR
        assert content == b"\x77" * SIZE
        assert status(driver, b.VIRTIO_BLK_T_WRITE_ZEROES, 0, (struct.pack("<QIIQII", 0, 1, 0, 2, 1, 0),)) == OK
        assert content[:1536] == bytes(512) + b"\x77" * 512 + bytes(512)


@pytest.mark.parametrize("buffers", [((bytes(16),), ()), ((bytes(15),), (1,)), ((), (512, 1))])
def test_what_cannot_be_answered_needs_a_reset_and_is_healed_by_it(
    buffers: tuple[tuple[bytes, ...], tuple[int, ...]],
) -> None:
    device = Block(MemoryDisk(SIZE))
    with drive(device) as driver:
        driver.write(1, b"a" * 512)
        driver.submit(0, *buffers)
        assert driver.needs_reset
        assert device.last_error is not None
        driver.start()
        assert driver.read(1) == b"a" * 512


def test_read_only_disks() -> None:
    with drive(Block(MemoryDisk(bytes(SIZE)))) as driver:
        assert driver.has(b.VIRTIO_BLK_F_RO)
        assert not driver.has(b.VIRTIO_BLK_F_DISCARD)
        ranges = struct.pack("<QII", 0, 1, 0)
        assert status(driver, b.VIRTIO_BLK_T_OUT, 0, (bytes(512),)) == IOERR
        for kind in (b.VIRTIO_BLK_T_DISCARD, b.VIRTIO_BLK_T_WRITE_ZEROES):
            assert status(driver, kind, 0, (ranges,)) == IOERR
        assert driver.read(0) == bytes(512)
        driver.flush()


def test_features_that_were_not_taken_are_not_served() -> None:
    with drive(Block(MemoryDisk(SIZE)), features=0) as driver:
        ranges = struct.pack("<QII", 0, 1, 0)
        for kind in (b.VIRTIO_BLK_T_DISCARD, b.VIRTIO_BLK_T_WRITE_ZEROES):
            assert status(driver, kind, 0, (ranges,)) == UNSUPP


def test_failures_of_the_disk_are_answers(caplog: pytest.LogCaptureFixture) -> None:
    disk = FailingDisk(SIZE)
    device = Block(disk)
    with drive(device) as driver:
        disk.fail = True
        assert status(driver, b.VIRTIO_BLK_T_IN, 0, (), (512,)) == IOERR
        assert status(driver, b.VIRTIO_BLK_T_OUT, 0, (bytes(512),)) == IOERR
        assert status(driver, b.VIRTIO_BLK_T_FLUSH) == IOERR
        assert status(driver, b.VIRTIO_BLK_T_DISCARD, 0, (struct.pack("<QII", 0, 1, 0),)) == IOERR
        assert device.errors["EIO"] == 4
        assert len(caplog.records) == 1
        assert "on fire" in caplog.text
        disk.fail = False
        assert not driver.needs_reset
        driver.write(0, b"x" * 512)


# caches


def flushes(disk: FailingDisk, driver: BlockDriver) -> int:
    before = disk.flushes
    driver.write(0, bytes(512))
    return disk.flushes - before


def test_the_driver_chooses_between_write_back_and_write_through() -> None:
    disk = FailingDisk(SIZE)
    with drive(Block(disk)) as driver:
        assert driver.config_value(32, 1) == 1
        assert flushes(disk, driver) == 0
        driver.flush()
        assert disk.flushes == 1
        driver.set_config(32, 0, 1)
        assert flushes(disk, driver) == 1
        driver.write_zeroes(0, 1)
        assert disk.flushes == 3
        driver.set_config(32, 1, 1)
        assert flushes(disk, driver) == 0
        driver.set_config(0, 0, 1)
        driver.set_config(32, 0, 4)
        assert driver.config_value(32, 1) == 1
        assert driver.capacity == SIZE // 512


def test_drivers_that_cannot_flush_need_not() -> None:
    disk = FailingDisk(SIZE)
    with drive(Block(disk), features=1 << b.VIRTIO_BLK_F_CONFIG_WCE) as driver:
        assert driver.config_value(32, 1) == 0
        assert flushes(disk, driver) == 1
        driver.set_config(32, 1, 1)
        assert flushes(disk, driver) == 1


@pytest.mark.parametrize(("cache", "expected"), [("writethrough", 1), ("unsafe", 0)])
def test_caches_that_the_machine_chooses(cache: str, expected: int) -> None:
    disk = FailingDisk(SIZE)
    with drive(Block(disk, cache=cache)) as driver:
        assert flushes(disk, driver) == expected
        before = disk.flushes
        driver.flush()
        assert disk.flushes - before == expected
        driver.set_config(32, 1, 1)
        assert flushes(disk, driver) == expected


# what the guest is told


def test_topology_and_limits() -> None:
    disk = MemoryDisk(SIZE)
    disk.topology = Topology(512, 4096, 8192, 65536, 16384)
    with drive(Block(disk, queues=3, seg_max=17, size_max=65536)) as driver:
        config = struct.unpack("<QIIHBBIBBHIBBHIIIIIB3x", driver.config(0, 60))
    assert config[:3] == (SIZE // 512, 65536, 17)
    assert config[6:11] == (512, 3, 0, 16, 128)
    assert config[13] == 3
    assert config[14:] == (1 << 22, 128, 32, 1 << 22, 128, 1)


def test_a_disk_grows_and_the_driver_is_told(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    device = Block(RawFile(str(path)))
    with drive(device) as driver:
        with pytest.raises(BlockError):
            driver.read(SIZE // 512)
        os.truncate(path, 2 * SIZE)
        assert device.resize() == 2 * SIZE // 512
        driver.poll()
        assert driver.config_changes == 1
        assert driver.capacity == 2 * SIZE // 512
        assert driver.read(SIZE // 512) == bytes(512)
        device.resize()
        driver.poll()
        assert driver.config_changes == 1
    device.close()


@pytest.mark.parametrize("options", [{"queues": 0}, {"seg_max": 0}, {"seg_max": 255}, {"cache": "none"}])
def test_impossible_disks(options: dict[str, int]) -> None:
    with pytest.raises(VirtioUsageError, match="queues"):
        Block(MemoryDisk(SIZE), **options)  # type: ignore[arg-type]
    with pytest.raises(VirtioUsageError, match="event loop"):
        Block(MemoryDisk(SIZE), rate_limiter=RateLimiter())


@pytest.mark.parametrize("size_max", [-1, 1 << 32])
def test_impossible_limits_of_buffers(size_max: int) -> None:
    with pytest.raises(VirtioUsageError, match="give up to 4294967295"):
        Block(MemoryDisk(SIZE), size_max=size_max)


def test_paths_and_buffers_are_disks(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"a" * SIZE)
    content = bytearray(b"c" * 512)
    for disk, expected in ((path, b"a"), (str(path), b"a"), (b"b" * 512, b"b"), (content, b"c")):
        device = Block(disk)
        with drive(device) as driver:
            assert driver.read(0) == expected * 512
        device.close()
    with pytest.raises(TypeError):
        Block(None)  # type: ignore[arg-type] # that is what is tried


# time


def test_a_rate_limit_is_kept_and_no_request_is_lost() -> None:
    now = 0
    with EventLoop() as loop:
        limiter = RateLimiter(ops=TokenBucket(2, 20, clock=lambda: now))
        content = bytearray(os.urandom(SIZE))
        device = Block(MemoryDisk(content), rate_limiter=limiter, loop=loop)
        with drive(device, pump=lambda: loop.run_once(0.01)) as driver:
            requests = [driver.submit_read(sector) for sector in range(6)]
            driver.poll()
            assert [request.done for request in requests] == [True] * 2 + [False] * 4
            for done in (4, 6):
                now += 20_000_000
                driver.wait(requests[done - 1])
                assert sum(request.done for request in requests) == done
            for sector, request in enumerate(requests):
                assert driver.finish(request) == content[sector * 512 : sector * 512 + 512]


def test_a_request_that_is_refused_costs_nothing_of_the_rate() -> None:
    with EventLoop() as loop:
        limiter = RateLimiter(TokenBucket(1 << 20, 100, clock=lambda: 0), TokenBucket(2, 100, clock=lambda: 0))
        device = Block(MemoryDisk(SIZE), rate_limiter=limiter, loop=loop)
        with drive(device, pump=lambda: loop.run_once(0.01)) as driver:
            huge = [(0x200000, 16 << 20, 2)] * 200
            for kind, sector in ((99, 0), (b.VIRTIO_BLK_T_IN, 1 << 40), (b.VIRTIO_BLK_T_IN, 0)):
                header = driver.arena.put(struct.pack("<IIQ", kind, 0, sector))
                status = driver.arena.alloc(1)
                request = driver.submit_buffers(0, [(header, 16, 0), *huge, (status, 1, 2)])
                driver.wait(request)
            # with a clock that stands still these two are all there is
            assert len(driver.read(0, 1)) == 512
            assert len(driver.read(0, 1)) == 512
            late = driver.submit_read(0)
            driver.poll()
            assert not late.done


# a back end with many requests under way


@pytest.fixture(scope="session")
def qemu() -> None:
    install(["qemu-utils", "qemu-system-common"], "which serve disk images")


def make_qcow2(path: Path) -> QemuNbdServer:
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", path, str(SIZE)], check=True)
    return QemuNbdServer(str(path), "qcow2")


@pytest.mark.parametrize("looped", [False, True])
def test_threads_do_what_takes_long(tmp_path: Path, looped: bool) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(8 * SIZE))
    disk = WorkerDisk(RawFile(str(path)))
    with EventLoop() as loop:
        device = Block(disk, loop=loop if looped else None, queues=2)
        with drive(device, ring="packed", pump=(lambda: loop.run_once(0.01)) if looped else None) as driver:
            data = os.urandom(SIZE)
            requests = [driver.submit_write(at * SIZE // 512, data, queue=at % 2) for at in range(8)]
            for request in requests:
                driver.finish(request)
            driver.write(1, data[:512])
            driver.flush()
            assert driver.read(0, SIZE // 512) == data[:512] * 2 + data[1024:]
            driver.write_zeroes(0, 8)
            driver.discard(8, 8)
            assert driver.read(0, 16) == bytes(8192)
            for sector in range(16):
                driver.submit_read(sector * 256, 256)
            driver.start()
            os.truncate(path, SIZE)
            with pytest.raises(BlockError):
                driver.read(2 * SIZE // 512, 256)
            assert "0 requests under way" in repr(disk)
        device.close()
    device.close()


class Held(MemoryDisk):
    """Answers a request when it is told to, into memory that may not be the driver's to give any more."""

    def __init__(self) -> None:
        super().__init__(SIZE)
        self.waiting: list[tuple[Sequence[memoryview], Done]] = []

    def submit(self, op: int, views: Sequence[memoryview], offset: int, length: int, done: Done) -> None:
        self.waiting.append((views, done))

    def fileno(self) -> int:
        return -1

    def wants_write(self) -> bool:
        return False

    def on_ready(self) -> None:
        while self.waiting:
            views, done = self.waiting.pop(0)
            for view in views:
                view[:] = b"x" * len(view)
            done(0)

    def drain(self, seconds: float) -> None:
        self.on_ready()


@pytest.mark.parametrize("ring", ["split", "packed"])
@pytest.mark.parametrize("ending", ["reset", "queue reset", "pause"])
def test_nothing_is_under_way_after_any_end_even_of_a_device_that_needs_a_reset(ring: str, ending: str) -> None:
    with EventLoop() as loop:
        disk = Held()
        device = Block(disk, loop=loop, queues=2)
        with drive(device, ring=ring) as driver:
            driver.submit_read(0, 256)
            assert len(disk.waiting) == 1
            driver.submit_buffers(1, [(1 << 40, 16, 0)])
            assert driver.needs_reset
            if ending == "reset":
                driver.port.set_status(0)
            elif ending == "queue reset":
                driver.port.reset_queue(0)
            else:
                device.pause()
            assert not disk.waiting


class Slow(MemoryDisk):
    """Takes until it is told to go on."""

    def __init__(self) -> None:
        super().__init__(SIZE)
        self.go = threading.Event()

    def readv(self, views: Sequence[memoryview], offset: int) -> None:
        self.go.wait(10)
        super().readv(views, offset)


def test_a_device_that_is_closed_in_the_middle_of_its_work_serves_nobody() -> None:
    disk = Slow()
    with EventLoop() as loop:
        device = Block(WorkerDisk(disk), loop=loop)
        with drive(device) as driver:
            request = driver.submit_read(0, 256)
            threading.Timer(0.02, disk.go.set).start()
            device.close()
            late = driver.submit_read(0)
            driver.poll()
            assert not request.done
            assert not late.done
            assert device.bugs == 0
        device.close()


class Broken(MemoryDisk):
    """Fails in a way of its own."""

    def readv(self, views: Sequence[memoryview], offset: int) -> None:
        raise ZeroDivisionError


def test_a_disk_with_a_bug_fails_its_requests_and_keeps_nobody_waiting(caplog: pytest.LogCaptureFixture) -> None:
    device = Block(WorkerDisk(Broken(SIZE), 1))
    with drive(device) as driver:
        for _ in range(3):
            with pytest.raises(BlockError):
                driver.read(0, 256)
    assert "ZeroDivisionError" in caplog.text
    device.close()


def test_an_answer_that_fails_leaves_the_others_to_be_given(tmp_path: Path) -> None:
    with WorkerDisk(MemoryDisk(SIZE), 1) as disk:
        ended: list[int] = []

        def fail(error: int) -> None:
            raise RuntimeError

        for done in (fail, ended.append, ended.append):
            disk.submit(FLUSH, (), 0, 0, done)
        with pytest.raises(RuntimeError):
            disk.drain(1)
        disk.drain(1)
        assert ended == [0, 0]


@pytest.mark.parametrize("looped", [False, True])
def test_images_behind_nbd(qemu: None, tmp_path: Path, looped: bool) -> None:
    with EventLoop() as loop:
        device = Block(make_qcow2(tmp_path / "image").connect(), loop=loop if looped else None, queues=2)
        with drive(device, ring="packed", pump=(lambda: loop.run_once(0.01)) if looped else None) as driver:
            data = os.urandom(65536)
            requests = [
                driver.submit_write(at * 8, data[at * 4096 : at * 4096 + 4096], queue=at % 2) for at in range(16)
            ]
            for request in requests:
                driver.finish(request)
            driver.flush()
            assert driver.read(0, 128) == data
            driver.write_zeroes(0, 8)
            driver.discard(8, 8)
            assert driver.read(0, 8) == bytes(4096)
            assert driver.get_id() == b""
            with pytest.raises(BlockError):
                driver.read(SIZE // 512)
            driver.set_config(32, 0, 1)
            driver.write(0, data[:512])
            device.pause()
            device.resume()
            assert driver.read(0) == data[:512]
        device.close()
    assert subprocess.run(["qemu-img", "check", "-q", tmp_path / "image"], check=False).returncode == 0


def test_a_reset_leaves_nothing_under_way(qemu: None, tmp_path: Path) -> None:
    with EventLoop() as loop:
        device = Block(make_qcow2(tmp_path / "image").connect(), loop=loop)
        with drive(device, pump=lambda: loop.run_once(0.01)) as driver:
            for sector in range(32):
                driver.submit_read(sector * 8, 8)
            driver.start()
            assert driver.read(0) == bytes(512)
            driver.submit_read(0)
            driver.reset_queue(0)
            assert driver.read(0) == bytes(512)
        device.close()


def test_a_server_that_dies(qemu: None, tmp_path: Path) -> None:
    with EventLoop() as loop:
        server = make_qcow2(tmp_path / "image")
        device = Block(server.connect(), loop=loop)
        with drive(device, pump=lambda: loop.run_once(0.01)) as driver:
            assert driver.read(0) == bytes(512)
            server.close()
            for _ in range(3):
                with pytest.raises(BlockError):
                    driver.read(0)
        device.close()
