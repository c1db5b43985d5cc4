"""Linux's own virtio drivers on our devices, by both transports and both rings."""

from __future__ import annotations

import os
import subprocess
from typing import NamedTuple

import pytest
from guest.host import install
from tests.vmm import virtio_guest as vg
from tests.vmm.virtio_guest import MIB, Guest, boot, crc

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(
        os.geteuid() != 0 or not os.access("/dev/net/tun", os.W_OK),
        reason="network namespaces and tap interfaces need root and /dev/net/tun",
    ),
]

RING_PACKED = 34
WORDS = "features,disk,blocks,rng,console,net,interrupts"
CI = [("mmio", "packed", 1, "tap", "raw"), ("pci", "split", 1, "user", "qcow2")]
ALL = [
    (transport, ring, cpus, "tap" if cpus == 1 else "user", "raw")
    for transport in ("mmio", "pci")
    for ring in ("split", "packed")
    for cpus in (1, 4)
]


class Run(NamedTuple):
    """One boot, and what it was given."""

    guest: Guest
    folder: Path
    network: vg.Network
    content: bytes
    blocks: bytes
    trace: str


def run(folder: Path, size: int, transport: str, ring: str, cpus: int, net: str, format_: str) -> Run:
    install(["e2fsprogs", "strace", "qemu-utils", "qemu-system-common"], "which make disks and watch them")
    content, blocks = os.urandom(300_000), os.urandom(4 * MIB)
    vg.make_ext2(folder / "disk", content)
    (folder / "blocks").write_bytes(blocks)
    second = str(folder / "blocks")
    if format_ != "raw":
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", format_, second, folder / "blocks.image"], check=True)
        second = f"{folder}/blocks.image,format={format_}"
    options = ["--disk", f"{folder}/disk,serial=lesson,queues={cpus}", "--disk", second, "--rng", "--console"]
    options += ["--transport", transport, "--ring", ring, "--cpus", str(cpus)]
    options += ["--net", f"{'tap=tap0' if net == 'tap' else 'user'},capture={folder}/frames"]
    # only the calls that are asked for stop at the tracer
    strace = [
        "strace",
        "-f",
        "--seccomp-bpf",
        "-qq",
        "-e",
        "trace=fdatasync,fallocate",
        "-e",
        "signal=none",
        "-o",
        f"{folder}/trace",
    ]
    with vg.namespace(net, folder, size) as network:
        guest = boot(
            WORDS,
            options,
            words=network.words,
            prefix=[*network.prefix, *strace],
            typed="good morning\n",
            when="hello from the guest",
        )
    trace = (folder / "trace").read_text()
    return Run(guest, folder, network, content, blocks, trace)


def ring_of(guest: Guest) -> set[str]:
    features = guest.output.split("features ")[1:]
    assert len(features) == 5, guest.output + guest.errors
    return {"packed" if each[RING_PACKED] == "1" else "split" for each in features}


def check_everything(done: Run, ring: str, cpus: int, net: str, format_: str) -> None:
    guest = done.guest
    assert guest.status == 0, guest.output + guest.errors
    guest.said("virtio: done")
    assert "failed" not in guest.output
    assert ring_of(guest) == {ring}
    check_disk(done)
    check_blocks(done, cpus, format_)
    check_net(done, net)
    guest.said("rng: from virtio_rng.0 64 bytes")
    guest.said("hello from the guest")
    guest.said("it said: good morning")
    guest.said(rf"console: got 13 bytes, crc {crc(b'good morning' + bytes([10]))}")


def check_disk(done: Run) -> None:
    guest, disk = done.guest, done.folder / "disk"
    guest.said(rf"disk: serial lesson sectors {8 * MIB // 512} cache write back")
    guest.said(rf"disk: read {len(done.content)} bytes, crc {crc(done.content)}")
    written = vg.pattern(MIB, 1)
    guest.said(rf"disk: wrote {MIB} bytes, crc {crc(written)}")
    assert vg.from_ext2(disk, "output") == written
    assert vg.from_ext2(disk, "input") == done.content
    assert vg.is_clean(disk)
    assert "fdatasync" in done.trace


def check_blocks(done: Run, cpus: int, format_: str) -> None:
    for cpu in range(cpus):
        expected = crc(done.blocks[cpu * 4096 : cpu * 4096 + 4096])
        done.guest.said(rf"blocks: processor {cpu} read 4096 bytes, crc {expected}")
    path = done.folder / "blocks"
    if format_ != "raw":
        image = done.folder / "blocks.image"
        assert subprocess.run(["qemu-img", "check", "-q", image], check=False).returncode == 0
        subprocess.run(["qemu-img", "convert", "-f", format_, "-O", "raw", image, path], check=True)
    after = path.read_bytes()
    assert after[:MIB] == done.blocks[:MIB]
    assert after[2 * MIB : 3 * MIB] == bytes(MIB)
    assert after[3 * MIB :] == done.blocks[3 * MIB :]
    assert path.stat().st_blocks * 512 <= 3 * MIB, "the second MiB is a hole"
    assert "FALLOC_FL_PUNCH_HOLE" in done.trace


def check_net(done: Run, net: str) -> None:
    guest, size = done.guest, len(done.network.content)
    guest.said(r"net: address of 52:54:00:\S+ mtu \d+")
    guest.said("net: ping came back with 56 bytes")
    guest.said(rf"net: fetched {size} bytes, crc {crc(done.network.content)}")
    sent = guest.said(rf"net: sent {size} bytes, crc (\S+)")
    assert [f"{checksum:08x}" for checksum in done.network.received] == [sent[1]]
    guest.said(rf"net: answered 6 bytes, crc {crc(b'thanks')}")
    assert (done.folder / "frames").stat().st_size > 2 * size
    assert (net == "tap") == (done.folder / "leases").exists()


@pytest.mark.parametrize("parameters", CI, ids=lambda param: "-".join(map(str, param)))
def test_linux_uses_every_device(parameters: tuple[str, str, int, str, str], tmp_path: Path) -> None:
    _, ring, cpus, net, format_ = parameters
    check_everything(run(tmp_path, MIB, *parameters), ring, cpus, net, format_)


@pytest.mark.slow
@pytest.mark.parametrize("parameters", ALL, ids=lambda param: "-".join(map(str, param)))
def test_the_whole_matrix(parameters: tuple[str, str, int, str, str], tmp_path: Path) -> None:
    _, ring, cpus, net, format_ = parameters
    check_everything(run(tmp_path, 8 * MIB, *parameters), ring, cpus, net, format_)
