"""The compiled data plane of a disk does what the Python does, and nothing when it must not."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.rebuilt import ROOT, library, rebuild, rebuild_with_sanitizers
from tests.virtio.raw_disk import CONTENT, plain, planed, raw_file

from pyvmm_memory import AtomicBitmap, GuestMemoryMmap
from pyvmm_virtio.backends.workers import WorkerDisk
from pyvmm_virtio.constants import block as b
from pyvmm_virtio.devices import Block
from pyvmm_virtio.devices.block.data_plane import DataPlane
from pyvmm_virtio.driver import drive
from pyvmm_virtio.fuzz import Fuzzer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path


class Counted(DataPlane):
    """Counts the chains that C did."""

    done = 0

    def take(self, *arguments: object, **options: object) -> tuple[int, int, bool]:
        count, moved, stopped = super().take(*arguments, **options)  # type: ignore[arg-type]
        Counted.done += count
        return count, moved, stopped


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> type[Counted]:
    monkeypatch.setattr("pyvmm_virtio.devices.block.data_plane.DataPlane", Counted)
    Counted.done = 0
    return Counted


def seen(fuzzer: Fuzzer) -> tuple[object, ...]:
    device = fuzzer.device
    disk = device.disk  # type: ignore[attr-defined] # it is a Block
    content = os.pread(getattr(disk, "disk", disk).fileno(), len(CONTENT), 0)
    queues = [queue.state() for queue in device.queues]
    return bytes(fuzzer.view), content, queues, dict(device.errors), str(device.last_error), device.needs_reset


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 1 << 32), rate=st.integers(2, 20), event_idx=st.booleans(), indirect=st.booleans())
def test_both_leave_the_same_behind(seed: int, rate: int, event_idx: bool, indirect: bool) -> None:
    """Requests that are mostly right, others that are not: memory, disk, rings and errors are the same after each."""
    devices = plain(), planed()
    options = {"seed": seed, "rate": rate, "event_idx": event_idx, "indirect": indirect}
    with Fuzzer(devices[0], **options) as python, Fuzzer(devices[1], **options) as compiled:  # type: ignore[arg-type]
        for _ in range(15):
            for fuzzer in (python, compiled):
                fuzzer.batch(16)
            assert seen(python) == seen(compiled)
    for device in devices:
        device.close()


def test_reads_and_writes_are_c(counted: type[Counted]) -> None:
    device = planed()
    with drive(device) as driver:
        driver.write(8, b"\x5a" * 1024)
        assert driver.read(7, 4) == CONTENT[7 * 512 : 8 * 512] + b"\x5a" * 1024 + CONTENT[10 * 512 : 11 * 512]
        assert counted.done == 2
        driver.flush()
        assert counted.done == 2
        requests = [driver.submit_read(sector, kick=False) for sector in range(40)]
        driver.kick(0)
        for request in requests:
            driver.finish(request)
        assert counted.done == 42
    device.close()


def test_many_buffers_in_one_request(counted: type[Counted]) -> None:
    device = planed()
    with drive(device) as driver:
        request = driver.submit(0, (struct.pack("<IIQ", b.VIRTIO_BLK_T_IN, 0, 3),), (512, 1024, 100, 412, 1))
        driver.wait(request)
        assert request.written() == CONTENT[1536 : 1536 + 2048] + b"\0"
        assert counted.done == 1
    device.close()


def test_dirty_pages_are_noted_by_python(counted: type[Counted]) -> None:
    device = planed()
    with GuestMemoryMmap.from_ranges([(0, 1 << 20)], bitmap=AtomicBitmap) as memory:
        with drive(device, memory=memory) as driver:
            request = driver.submit(0, (struct.pack("<IIQ", b.VIRTIO_BLK_T_IN, 0, 0),), (4096, 1))
            driver.wait(request)
            (region,) = memory
            bitmap = region.mapping.bitmap
            assert bitmap is not None
            assert all(bitmap.dirty_at(addr) for addr, _, flags in request.buffers if flags)
        assert counted.done == 0
    device.close()


@pytest.mark.parametrize("options", [{"in_order": True}, {"ring": "packed"}])
def test_what_c_does_not_know_is_python_s(counted: type[Counted], options: dict[str, object]) -> None:
    device = planed()
    with drive(device, **options) as driver:  # type: ignore[arg-type]
        assert driver.read(1) == CONTENT[512:1024]
    assert counted.done == 0
    device.close()


def test_write_through_and_read_only_stay_so(counted: type[Counted]) -> None:
    device = Block(raw_file(), cache="writethrough")
    with drive(device) as driver:
        driver.write(0, bytes(512))
        assert counted.done == 0
        assert driver.read(0) == bytes(512)
        assert counted.done == 1
    device.close()


def test_threads_share_large_requests_and_failures_are_answers(counted: type[Counted]) -> None:
    device = Block(WorkerDisk(raw_file(bytes(16 << 20)), 3))
    with drive(device) as driver:
        data = [os.urandom(1 << 20) for _ in range(8)]
        writes = [driver.submit_write(at << 11, part, kick=False) for at, part in enumerate(data)]
        driver.kick(0)
        for request in writes:
            driver.finish(request)
        assert counted.done == 8
        os.truncate(device.disk.disk.fileno(), 5 << 20)  # type: ignore[attr-defined] # a WorkerDisk
        kind = struct.pack("<IIQ", b.VIRTIO_BLK_T_IN, 0, 0)[:8]
        reads = [driver.submit(0, (kind + struct.pack("<Q", at << 11),), (1 << 20, 1), kick=False) for at in range(8)]
        driver.kick(0)
        for at, request in enumerate(reads):
            driver.wait(request)
            assert request.length == ((1 << 20) + 1 if at < 5 else 0)
            assert driver.status_of(request) == (b.VIRTIO_BLK_S_OK if at < 5 else b.VIRTIO_BLK_S_IOERR)
            if at < 5:
                assert request.written(1 << 20) == data[at]
        assert counted.done == 13
        assert not driver.needs_reset
    device.close()
    device.close()


def test_a_reset_waits_for_the_batch_under_way() -> None:
    device = Block(WorkerDisk(raw_file(b"\x5a" * (4 << 20)), 2))
    with GuestMemoryMmap.from_ranges([(0, 48 << 20)]) as memory:
        for _ in range(5):
            with drive(device, memory=memory) as driver:
                header = driver.arena.put(struct.pack("<IIQ", b.VIRTIO_BLK_T_IN, 0, 0))
                places = [driver.arena.alloc(2 << 20) for _ in range(12)]
                for place in places:
                    status = driver.arena.alloc(1)
                    driver.submit_buffers(0, [(header, 16, 0), (place, 2 << 20, 2), (status, 1, 2)], kick=False)
                thread = threading.Thread(target=device.kick, args=(0,))
                thread.start()
                device.driver_reset()
                for place in places:
                    memory.write_slice(bytes(4096), place)
                thread.join()
                for place in places:
                    with memory.get_slice(place, 4096) as view:
                        assert view == bytes(4096)
    device.close()


def attack_disks(environment: dict[str, str], chains: int) -> None:
    for subject in ("planed", "planed_with_threads"):
        command = [sys.executable, "-m", "pyvmm_virtio.fuzz", f"tests.virtio.raw_disk:{subject}", "--ring", "split"]
        done = subprocess.run(
            [*command, "--chains", str(chains)], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr[-4000:]
        assert f"{chains} chains" in done.stdout


@pytest.mark.slow
def test_an_attack_under_the_sanitizers(tmp_path: Path) -> None:
    attack_disks(rebuild_with_sanitizers("pyvmm_virtio", "_virtio", tmp_path, "-Wall -Wextra -Werror"), 20000)


def run_this_file(environment: dict[str, str], *words: str) -> None:
    command = [*words, sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", __file__]
    done = subprocess.run(command, env=environment, check=False, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr[-4000:]


@pytest.mark.slow
def test_no_thread_races_another(tmp_path: Path) -> None:
    runtime = library("libtsan.so")
    if not os.path.isabs(runtime):
        pytest.skip("the compiler has no libtsan")
    environment = rebuild("pyvmm_virtio", tmp_path, "-fsanitize=thread -g -O1", "-fsanitize=thread")
    # it wants a part of the address space that a random layout may take
    run_this_file(environment | {"LD_PRELOAD": runtime}, "setarch", "-R")


@pytest.mark.slow
def test_the_tests_run_every_line_of_c(tmp_path: Path) -> None:
    """What gcov says of this file's tests and an attack; cffi's wrappers are not counted."""
    environment = rebuild("pyvmm_virtio", tmp_path, "--coverage -O0", "--coverage")
    attack_disks(environment, 2000)
    run_this_file(environment)
    (notes,) = tmp_path.rglob("*.gcno")
    # where the compiler ran, for the name of the source is relative
    folder = tmp_path / "pyvmm_virtio"
    subprocess.run(["gcov", "--object-directory", notes.parent, notes], check=True, capture_output=True, cwd=folder)
    ours = set((ROOT / "pyvmm_virtio/src/pyvmm_virtio/native/block.h").read_text().splitlines())
    counts = [line.split(":", 2) for line in (folder / "pyvmm_virtio._virtio.c.gcov").read_text().splitlines()]
    counts = [each for each in counts if each[0].strip() != "-" and each[2] in ours and len(each[2].strip()) > 1]
    missed = [f"{number.strip()}: {text.strip()}" for count, number, text in counts if count.strip() == "#####"]
    assert len(counts) > 150
    assert len(missed) < len(counts) * 0.05, missed
