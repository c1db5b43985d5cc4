"""One suite for every disk: files, memory, and images of other formats behind NBD."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
import threading
import time
from random import Random

import pytest
from guest.host import install
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyvmm_virtio.backends import raw
from pyvmm_virtio.backends.block import Topology
from pyvmm_virtio.backends.disk import nbd_address, open_disk
from pyvmm_virtio.backends.errors import BackendError, BadImage, ImageLocked
from pyvmm_virtio.backends.memory import MemoryDisk
from pyvmm_virtio.backends.nbd import QemuNbdServer
from pyvmm_virtio.backends.raw import RawFile
from pyvmm_virtio.backends.workers import WorkerDisk

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pyvmm_virtio.backends.block import BlockBackend

SIZE = 1 << 20


@pytest.fixture(scope="session")
def qemu() -> None:
    install(["qemu-utils", "qemu-system-common"], "which serve disk images")


def make_image(path: Path, kind: str, size: int = SIZE) -> str:
    if kind == "raw":
        path.write_bytes(bytes(size))
    else:
        subprocess.run(["qemu-img", "create", "-q", "-f", kind, path, str(size)], check=True)
    return str(path)


@pytest.fixture(params=["memory", "file", "workers", "qcow2 by qemu-storage-daemon", "vmdk by qemu-nbd"])
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[BlockBackend]:
    kind, _, tool = request.param.partition(" by ")
    path = tmp_path / "image"
    if kind == "memory":
        backend: BlockBackend = MemoryDisk(SIZE)
    elif kind == "file":
        backend = open_disk(make_image(path, "raw"))
    elif kind == "workers":
        backend = WorkerDisk(open_disk(make_image(path, "raw")))
    else:
        request.getfixturevalue("qemu")
        backend = QemuNbdServer(make_image(path, kind), kind, tool=tool).connect()
    yield backend
    backend.close()


def read(disk: BlockBackend, offset: int, length: int) -> bytes:
    buffer = bytearray(length)
    with memoryview(buffer) as view:
        disk.readv([view[: length // 3], view[length // 3 :]], offset)
    return bytes(buffer)


def write(disk: BlockBackend, offset: int, data: bytes) -> None:
    view = memoryview(data)
    disk.writev([view[:1], view[1:]], offset)


operation = st.tuples(
    st.sampled_from(["write", "zero", "unmap", "flush"]), st.integers(0, SIZE // 512 - 1), st.integers(1, 64)
)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(operation, min_size=1, max_size=12), st.integers(0, 1 << 32))
def test_it_remembers_what_was_written(disk: BlockBackend, operations: list[tuple[str, int, int]], seed: int) -> None:
    random = Random(seed)
    model = bytearray(read(disk, 0, SIZE))
    for what, sector, count in operations:
        offset, length = sector * 512, min(count * 512, SIZE - sector * 512)
        data = random.randbytes(length) if what == "write" else bytes(length)
        if what == "write":
            write(disk, offset, data)
        elif what == "flush":
            disk.flush()
            continue
        else:
            disk.write_zeroes(offset, length, what == "unmap")
        model[offset : offset + length] = data
    assert read(disk, 0, SIZE) == bytes(model)


def test_many_buffers_in_one_request(disk: BlockBackend) -> None:
    data = os.urandom(3000 * 8)
    view = memoryview(data)
    disk.writev([view[at : at + 8] for at in range(0, len(data), 8)], 512)
    target = bytearray(len(data))
    with memoryview(target) as whole:
        disk.readv([whole[at : at + 8] for at in range(0, len(data), 8)], 512)
    assert target == data


def test_a_discard_leaves_its_neighbours_alone(disk: BlockBackend) -> None:
    write(disk, 0, b"\x55" * SIZE)
    disk.discard(65536, 65536)
    content = read(disk, 0, SIZE)
    assert content[:65536] == b"\x55" * 65536
    assert content[131072:] == b"\x55" * (SIZE - 131072)


def test_it_says_what_it_is(disk: BlockBackend) -> None:
    assert disk.size == disk.refresh() == SIZE
    assert not disk.read_only
    assert disk.can_discard
    assert disk.topology.logical_block_size == 512
    assert repr(disk)
    disk.close()


# files


def test_a_discard_punches_a_hole(tmp_path: Path) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"\x55" * SIZE)
    with RawFile(str(path)) as disk:
        full = path.stat().st_blocks
        disk.discard(0, SIZE)
        assert path.stat().st_blocks < full // 4
        assert path.stat().st_size == SIZE


def test_file_systems_without_holes_still_write_zeros(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "image"
    path.write_bytes(b"\x55" * 2 * SIZE)

    def refuse(fd: int, mode: int, offset: int, length: int) -> None:
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(raw, "fallocate", refuse)
    with RawFile(str(path)) as disk:
        disk.write_zeroes(512, SIZE + 512, True)
        disk.discard(0, 512)
        assert not disk.can_discard
    assert path.read_bytes() == b"\x55" * 512 + bytes(SIZE + 512) + b"\x55" * (SIZE - 1024)


def test_other_failures_of_fallocate_are_errors(tmp_path: Path) -> None:
    path = make_image(tmp_path / "image", "raw")
    with RawFile(path, read_only=True) as disk, pytest.raises(BackendError, match="fallocate"):
        disk.discard(0, 512)


def test_after_a_flush_that_failed_none_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linux tells of pages that it could not write once, and forgets them then."""
    with RawFile(make_image(tmp_path / "image", "raw")) as disk:
        disk.flush()

        def fail(fd: int) -> None:
            raise OSError(errno.EIO, "once")

        with monkeypatch.context() as patched:
            patched.setattr(os, "fdatasync", fail)
            with pytest.raises(OSError, match="once"):
                disk.flush()
        for _ in range(2):
            with pytest.raises(OSError, match="an earlier flush failed") as raised:
                disk.flush()
            assert raised.value.errno == errno.EIO


def test_many_zeros_in_memory() -> None:
    content = bytearray(b"\x55" * (3 << 20))
    disk = MemoryDisk(content)
    disk.write_zeroes(512, (2 << 20) + 1024, True)
    assert content == b"\x55" * 512 + bytes((2 << 20) + 1024) + b"\x55" * ((1 << 20) - 1536)


def test_an_image_that_shrank_is_an_io_error(tmp_path: Path) -> None:
    path = make_image(tmp_path / "image", "raw")
    with RawFile(path) as disk:
        os.truncate(path, 512)
        with pytest.raises(OSError, match="the image ends after 512 bytes"):
            read(disk, 0, 1024)
        assert disk.refresh() == 512


@pytest.mark.parametrize("size", [0, 511, 513])
def test_images_of_parts_of_sectors_are_refused_with_the_cure(tmp_path: Path, size: int) -> None:
    path = tmp_path / "image"
    path.write_bytes(bytes(size))
    with pytest.raises(BadImage, match="truncate -s") as refusal:
        RawFile(str(path))
    command = str(refusal.value).split("'")[1].split()
    subprocess.run(command, check=True)
    RawFile(str(path)).close()
    with pytest.raises(BadImage, match="no disk of 512-byte sectors"):
        MemoryDisk(size)


def test_what_is_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match="neither a file nor a block device"):
        RawFile("/dev/null")
    with pytest.raises(FileNotFoundError):
        RawFile(str(tmp_path / "nothing"))


def test_an_image_is_locked_for_one_writer_or_many_readers(tmp_path: Path) -> None:
    path = make_image(tmp_path / "image", "raw")
    with (
        RawFile(path),
        pytest.raises(ImageLocked, match="itself has locked it: give each disk its own image") as refusal,
    ):
        RawFile(path, read_only=True)
    assert refusal.value.filename == path
    with RawFile(path, read_only=True), RawFile(path, read_only=True):
        with pytest.raises(ImageLocked, match="read-only in both"):
            RawFile(path)
        RawFile(path, lock=False).close()
    RawFile(path).close()


def test_the_holder_of_a_lock_is_named(tmp_path: Path) -> None:
    path = make_image(tmp_path / "image", "raw")
    program = (
        "import sys; from pyvmm_virtio.backends.raw import RawFile; d=RawFile(sys.argv[1]); print(flush=1);input()"
    )
    holder = subprocess.Popen([sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(ImageLocked, match=rf"{holder.pid}.* has locked it: stop it first") as refusal:
            RawFile(path)
        assert holder.pid in [pid for pid, _ in refusal.value.holders]
        holder.communicate(b"\n")


def test_qemu_respects_our_lock(qemu: None, tmp_path: Path) -> None:
    path = make_image(tmp_path / "image", "raw")
    command = ["qemu-io", "-f", "raw", "-c", "read 0 512", path]
    with RawFile(path):
        refused = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "lock" in refused.stderr
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0


def test_files_without_locks_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_image(tmp_path / "image", "raw")

    def refuse(*arguments: object) -> int:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "fcntl", refuse)
    with pytest.raises(BackendError, match="lock=False does without"):
        RawFile(path)


def test_topology_of_a_block_device(tmp_path: Path) -> None:
    path = make_image(tmp_path / "image", "raw")
    made = subprocess.run(["losetup", "--find", "--show", path], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"no loop devices here: {made.stderr.strip()}")
    device = made.stdout.strip()
    try:
        with RawFile(device) as disk:
            assert disk.is_device
            assert disk.size == disk.refresh() == SIZE
            assert disk.topology.physical_block_size >= disk.topology.logical_block_size == 512
            write(disk, 0, b"x" * 4096)
            disk.discard(0, 4096)
            disk.flush()
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def test_topology_makes_sense_of_nonsense() -> None:
    assert Topology(1, 1).physical_block_size == 512
    assert "logical_block_size=4096" in repr(Topology(4096, 512))


def test_a_buffer_is_a_disk() -> None:
    content = bytearray(1024)
    disk = MemoryDisk(content)
    write(disk, 512, b"a" * 512)
    assert content == bytes(512) + b"a" * 512
    assert MemoryDisk(bytes(512)).read_only
    assert MemoryDisk(512, read_only=True).read_only


# images behind NBD


def test_the_format_is_never_guessed(qemu: None, tmp_path: Path) -> None:
    path = make_image(tmp_path / "image", "qcow2")
    with open(path, "ab") as file:
        file.write(bytes(-os.path.getsize(path) % 512))
    disk = open_disk(path)
    assert read(disk, 0, 4) == b"QFI\xfb"
    disk.close()
    with pytest.raises(BadImage, match=r"QEMU does not serve it as vmdk: \w"):
        open_disk(path, "vmdk")
    with pytest.raises(BadImage, match="no image format: give one of raw, qcow2"):
        open_disk(path, "file")


@pytest.mark.parametrize("name", ["comma,file=x", 'quote"', "a space"])
def test_names_are_not_options(qemu: None, tmp_path: Path, name: str) -> None:
    path = make_image(tmp_path / "image", "qcow2")
    strange = tmp_path / name
    os.rename(path, strange)
    for tool in ("qemu-storage-daemon", "qemu-nbd"):
        QemuNbdServer(str(strange), "qcow2", tool=tool).connect().close()


def test_read_only_images(qemu: None, tmp_path: Path) -> None:
    path = make_image(tmp_path / "image", "qcow2")
    for tool in ("qemu-storage-daemon", "qemu-nbd"):
        with QemuNbdServer(path, "qcow2", read_only=True, tool=tool).connect() as disk:
            assert disk.read_only
            assert not disk.can_discard
            with pytest.raises(OSError, match="NBD server failed"):
                write(disk, 0, bytes(512))


def test_a_missing_program_is_named_with_its_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = make_image(tmp_path / "image", "raw")
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(BackendError, match="install Debian's qemu-system-common"):
        QemuNbdServer(path, "qcow2")


def test_the_server_does_not_end_with_the_thread_that_asked_for_it(qemu: None, tmp_path: Path) -> None:
    path = make_image(tmp_path / "image", "qcow2")
    made: list[BlockBackend] = []
    thread = threading.Thread(target=lambda: made.append(open_disk(path, "qcow2")))
    thread.start()
    thread.join()
    for _ in range(20):
        assert read(made[0], 0, 512) == bytes(512)
        time.sleep(0.005)
    made[0].close()


def test_the_server_ends_with_the_disk_and_is_gone_with_its_parent(qemu: None, tmp_path: Path) -> None:
    path = make_image(tmp_path / "image", "qcow2")
    program = (
        "import sys; from pyvmm_virtio.backends.disk import open_disk;"
        "d = open_disk(sys.argv[1], 'qcow2'); d.writev([memoryview(bytes([7]) * 4096)], 0); d.flush();"
        "print(flush=True); input()"
    )
    child = subprocess.Popen([sys.executable, "-c", program, path], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    with child:
        assert child.stdout is not None
        child.stdout.readline()
        child.kill()
        child.stdout.close()
        assert child.stdin is not None
        child.stdin.close()
    # its lock is free as soon as it is gone, and not before
    for _ in range(100):
        try:
            disk = open_disk(path, "qcow2")
            break
        except BadImage:
            continue
    assert read(disk, 0, 4096) == b"\x07" * 4096
    disk.close()
    assert subprocess.run(["qemu-img", "check", "-q", path], check=False).returncode == 0


@pytest.mark.parametrize(
    ("uri", "parts"),
    [
        ("nbd:unix:/a", ("/a", "")),
        ("nbd://[::1]:99/a%20b", (("::1", 99), "a b")),
        ("nbd+unix:///?socket=/s", ("/s", "")),
    ],
)
def test_addresses_of_servers(uri: str, parts: tuple[object, str]) -> None:
    assert nbd_address(uri) == parts


@pytest.mark.parametrize("uri", ["nbd:", "nbd:unix:", "nbd:///x", "nbd+unix:///x", "http://x/"])
def test_what_is_no_address(uri: str) -> None:
    with pytest.raises(ValueError, match="is no address of an NBD server"):
        nbd_address(uri)
