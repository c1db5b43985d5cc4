"""What was acknowledged is not lost: a flush says that all is stable only where it is, and never after one that failed.

A file that fails on command is made by a library that stands before the C library (`failing_file.c`): when it is told
to, it undoes what was written since the last flush, as a kernel does that drops pages which it cannot write, and has
one flush fail, and only one, as Linux does for each open file (errseq_t).
"""

from __future__ import annotations

import errno
import mmap
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from guest.host import install
from tests.hostile.disks import Bench, disk_classes
from tests.virtio.durable import SIZE, SLOT, SLOTS, check
from tests.virtio.test_nbd import Server, shake_hands

from pyvmm_device import EventLoop
from pyvmm_memory import GuestMemoryMmap, save
from pyvmm_virtio.backends.block import FLUSH
from pyvmm_virtio.backends.errors import BadImage
from pyvmm_virtio.backends.memory import MemoryDisk
from pyvmm_virtio.backends.nbd import NbdDisk
from pyvmm_virtio.backends.nbd import protocol as nbd
from pyvmm_virtio.backends.raw import RawFile
from pyvmm_virtio.backends.workers import WorkerDisk
from pyvmm_virtio.devices import Block
from pyvmm_virtio.driver import drive
from pyvmm_virtio.driver.block import BlockError

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from typing import Any

HERE = Path(__file__).parent
NEVER_LOSES = ("MemoryDisk",)
"""Disks that forget all or nothing: their flush has nothing that could fail."""


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    bench = Bench(tmp_path)
    yield bench
    bench.close()


class Kernel:
    """`os.fdatasync` as Linux has it: all who wait at once wait for the same pages, and one of them is told."""

    def __init__(self) -> None:
        self.errors = [errno.EIO]
        self.meeting = threading.Barrier(2)
        self.lock = threading.Lock()

    def sync(self, fd: int) -> None:
        try:
            self.meeting.wait(0.1)
        except threading.BrokenBarrierError:
            self.meeting.reset()
        with self.lock:
            error = self.errors.pop() if self.errors else 0
        if error:
            raise OSError(error, os.strerror(error))


def all_flushes(disk: Any) -> dict[str, Callable[[], int]]:  # noqa: ANN401 - a disk
    """The ways to flush a disk: each returns the error, or 0."""

    def wait() -> int:
        try:
            disk.flush()
        except OSError as error:
            return error.errno or errno.EIO
        return 0

    def submit() -> int:
        answers: list[int] = []
        disk.submit(FLUSH, (), 0, 0, answers.append)
        disk.drain(10)
        return answers[0]

    return {"wait": wait, "submit": submit} if hasattr(disk, "submit") else {"wait": wait}


@pytest.mark.parametrize("kind", disk_classes(), ids=lambda kind: kind.__name__)
def test_of_flushes_at_once_none_succeeds_where_one_fails_and_none_after(
    kind: type[Any], bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind.__name__ in NEVER_LOSES:
        return
    kernel = Kernel()
    monkeypatch.setattr(os, "fdatasync", kernel.sync)
    monkeypatch.setattr(os, "fsync", kernel.sync)
    disk = bench.make(kind, errors=[errno.EIO])
    answers: list[int] = []
    if hasattr(disk, "submit"):
        for _ in range(4):
            disk.submit(FLUSH, (), 0, 0, answers.append)
        disk.drain(10)
    else:
        threads = [threading.Thread(target=lambda: answers.append(all_flushes(disk)["wait"]())) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert answers == [errno.EIO] * 4
    for name, flush in all_flushes(disk).items():
        assert flush() == errno.EIO, name
    disk.close()


def test_opened_anew_a_disk_flushes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    with monkeypatch.context() as patched:
        patched.setattr(os, "fdatasync", Kernel().sync)
        with RawFile(str(path)) as disk, pytest.raises(OSError, match="Input/output"):
            disk.flush()
    with RawFile(str(path)) as disk:
        disk.flush()


# files that fail on command


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler")
    path = tmp_path_factory.mktemp("library") / "failing_file.so"
    warnings = ["-Wall", "-Wextra", "-Werror"]
    words: list[str | Path] = [compiler, "-O2", *warnings, "-shared", "-fPIC", "-o", path, HERE / "failing_file.c"]
    subprocess.run([*words, "-lpthread"], check=True)
    return path


PROGRAM = """
import os, sys
path, kind, first, slots, slot = sys.argv[1], sys.argv[2], *map(int, sys.argv[3:6])
if kind != "raw":
    os.environ["LD_PRELOAD"] = sys.argv[6]  # for the server alone
from pyvmm_virtio.backends.disk import open_disk
from pyvmm_virtio.backends.nbd import QemuNbdServer
from pyvmm_virtio.backends.workers import WorkerDisk
from pyvmm_virtio.devices import Block
from pyvmm_virtio.driver import drive
from pyvmm_virtio.driver.block import BlockError
disk = WorkerDisk(open_disk(path)) if kind == "raw" else QemuNbdServer(path, kind, tool="qemu-nbd").connect()
with drive(Block(disk, queues=2), ring="packed") as driver:
    os.write(1, b"0\\n")
    number, failed = first, 0
    while failed < 8:
        writes = []
        for _ in range(5):
            data = number.to_bytes(8, "little") * (slot // 8)
            writes.append(driver.submit_write(number * 37 % slots * slot // 512, data, queue=number % 2))
            number += 1
        for write in writes:
            try:
                driver.finish(write)
            except BlockError:
                if not failed:
                    raise  # later on an image may refuse writes: what it has to say of itself was not written either
        flushes = [driver.submit_request(4, queue=queue, kick=False) for queue in (0, 1)]
        driver.kick(0), driver.kick(1)
        for flush in flushes:
            try:
                driver.finish(flush)
                os.write(1, b"%d\\n" % (number - 1))
            except BlockError:
                failed += 1
                os.write(1, b"-%d\\n" % failed)
"""


def command(path: Path, kind: str, first: int, library: Path) -> tuple[list[str], dict[str, str]]:
    """How a child is started that writes and flushes, and what tells the library which file to fail."""
    environment = {**os.environ, "FAILING_FILE": str(path), "FAILING_COMMAND": str(path.with_suffix(".fail"))}
    if kind == "raw":
        environment["LD_PRELOAD"] = str(library)
    words = [sys.executable, "-c", PROGRAM, str(path), kind, str(first), str(SLOTS), str(SLOT), str(library)]
    return words, environment


def fail_once(path: Path, kind: str, first: int, library: Path, chance: random.Random) -> tuple[int, int]:
    """Write from number `first` on and have a flush fail; returns the last number that was covered, and failures."""
    words, environment = command(path, kind, first, library)
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"0\n"
        time.sleep(chance.random() * 0.05)
        path.with_suffix(".fail").touch()
        lines = [int(line) for line in child.stdout.read().splitlines()]
        assert child.wait() == 0
    failures = [at for at, line in enumerate(lines) if line < 0]
    assert failures, "a flush failed"
    assert all(line < 0 for line in lines[failures[0] :]), (
        f"after a flush that failed one says that all is well: {lines}"
    )
    return max([first - 1, *(line for line in lines if line > 0)]), len(failures)


def kill_once(path: Path, kind: str, first: int, library: Path, chance: random.Random) -> tuple[int, int]:
    """Write from number `first` on until a random moment, at which it is killed."""
    words, environment = command(path, kind, first, library)
    with subprocess.Popen(words, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"0\n"
        time.sleep(chance.random() * 0.05)
        child.kill()
        lines = child.stdout.read().splitlines()
    return max([first - 1, *(int(line) for line in lines)]), 0


def attack(tmp_path: Path, kind: str, library: Path, times: int, once: Callable[..., tuple[int, int]]) -> None:
    path = tmp_path / "image"
    if kind == "raw":
        path.write_bytes(bytes(SIZE))
    else:
        install(["qemu-utils"], "which serves disk images")
        subprocess.run(["qemu-img", "create", "-q", "-f", kind, path, str(SIZE)], check=True)
    seed = int.from_bytes(os.urandom(4), "little")
    chance = random.Random(seed)
    written: dict[int, int] = {}
    first, flushed = 1, 0
    for _ in range(times):
        last, _ = once(path, kind, first, library, chance)
        written.update((number * 37 % SLOTS, number) for number in range(first, last + 1))
        flushed += last >= first
        check(path, kind, written)
        first = last + 1000  # what was under way is older than everything to come
    assert flushed or times < 5, f"at least one ended after a flush, seed {seed}"


ENDINGS = {"killed": kill_once, "failing": fail_once}


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_what_was_flushed_is_there(tmp_path: Path, library: Path, kind: str, ending: str) -> None:
    attack(tmp_path, kind, library, 3, ENDINGS[ending])


@pytest.mark.slow
@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("kind", ["raw", "qcow2"])
def test_what_was_flushed_is_there_two_hundred_times(tmp_path: Path, library: Path, kind: str, ending: str) -> None:
    attack(tmp_path, kind, library, 200, ENDINGS[ending])


def test_the_library_loses_what_was_not_flushed(tmp_path: Path, library: Path) -> None:
    """Or none of these tests would find anything: a disk that flushes twice is told that all is well, and it is not."""
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    program = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDWR)
os.pwrite(fd, b"a" * 4096, 0); os.fdatasync(fd)
os.pwritev(fd, [b"b" * 512, b"c" * 512], 512); os.pwrite(fd, b"d" * 10, 0)
open(sys.argv[2], "w").close()
try:
    os.fsync(fd); sys.exit(1)
except OSError as error:
    assert error.errno == 5
os.fdatasync(fd)
"""
    flag = path.with_suffix(".fail")
    environment = {**os.environ, "LD_PRELOAD": str(library), "FAILING_FILE": str(path), "FAILING_COMMAND": str(flag)}
    subprocess.run([sys.executable, "-c", program, path, flag], env=environment, check=True)
    assert path.read_bytes()[:8192] == b"a" * 4096 + bytes(4096)


# what is no file of its own


def test_a_flush_of_a_mapped_file_writes_it_back(tmp_path: Path) -> None:
    """A disk that is a mapped file is as stable as the file is; an error of its write-back is remembered, too."""
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    errors: list[int] = []
    flushed: list[int] = []

    class Mapped(mmap.mmap):
        def flush(self, *arguments: int) -> None:
            flushed.append(1)
            if errors:
                raise OSError(errors.pop(), "write-back failed")
            super().flush(*arguments)

    with open(path, "r+b") as file, Mapped(file.fileno(), 0) as mapped:
        disk = MemoryDisk(mapped)
        with drive(Block(disk)) as driver:
            driver.write(0, b"x" * 512)
            driver.flush()
            assert flushed
            assert path.read_bytes()[:512] == b"x" * 512
            errors.append(errno.EIO)
            for _ in range(3):
                with pytest.raises(BlockError):
                    driver.flush()
        disk.close()


def test_with_a_loop_a_mapped_file_is_flushed_by_a_thread() -> None:
    with EventLoop() as loop, mmap.mmap(-1, SIZE) as mapped:
        device = Block(MemoryDisk(mapped), loop=loop)
        assert isinstance(device._backend, WorkerDisk)
        device.close()


def test_a_file_that_is_open_for_appending_is_no_disk(tmp_path: Path) -> None:
    """Linux writes at its end, wherever one says: what is acknowledged would be elsewhere."""
    path = tmp_path / "image"
    path.write_bytes(bytes(SIZE))
    with pytest.raises(BadImage, match="appending"):
        RawFile(str(path), fd=os.open(path, os.O_RDWR | os.O_APPEND))


def test_a_snapshot_of_memory_is_there_when_save_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The file first, then its name, then the directory that has the name."""
    done: list[str] = []

    def fsync(fd: int) -> None:
        done.append("folder" if os.path.isdir(f"/proc/self/fd/{fd}") else "file")

    def replace(old: str, new: str) -> None:
        done.append("name")
        rename(old, new)

    rename = os.replace
    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    with GuestMemoryMmap.from_ranges([(0, 1 << 16)]) as memory:
        save(memory, tmp_path / "memory")
    assert done == ["file", "name", "folder"]
    assert os.listdir(tmp_path) == ["memory"]


@pytest.mark.parametrize("flags", [nbd.SEND_FUA, nbd.SEND_FUA | nbd.SEND_FLUSH, nbd.SEND_FLUSH])
def test_a_server_without_a_flush_is_asked_for_each_write_to_be_stable(flags: int) -> None:
    """Or a flush, which nobody could ask for, would say that all is well."""
    seen: list[tuple[int, int]] = []

    def script(connection: socket.socket) -> None:
        shake_hands(connection, nbd.HAS_FLAGS | nbd.SEND_TRIM | flags)
        while True:
            _, wanted, command, cookie, _, length = nbd.REQUEST.unpack(nbd.receive(connection, nbd.REQUEST.size))
            if command == nbd.CMD_DISC:
                return
            if command == nbd.CMD_WRITE:
                nbd.receive(connection, length)
            seen.append((command, wanted & nbd.CMD_FLAG_FUA))
            connection.sendall(nbd.SIMPLE_REPLY.pack(nbd.SIMPLE_REPLY_MAGIC, 0, cookie))

    with Server(script) as server, NbdDisk(server.address) as disk:
        disk.writev([memoryview(b"x" * 512)], 0)
        disk.write_zeroes(512, 512, unmap=True)  # which is a write here
        disk.discard(1024, 512)
        disk.flush()
    through = 0 if flags & nbd.SEND_FLUSH else nbd.CMD_FLAG_FUA
    expected = [(nbd.CMD_WRITE, through), (nbd.CMD_WRITE, through), (nbd.CMD_TRIM, 0)]
    assert seen == expected + [(nbd.CMD_FLUSH, 0)] * (not through)
