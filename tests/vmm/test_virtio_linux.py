"""Linux's own virtio drivers on our devices, by both transports and both rings."""

from __future__ import annotations

import os
import signal
import subprocess
from typing import NamedTuple

import pytest
from guest.host import install
from tests.vmm import virtio_guest as vg
from tests.vmm.changing_vmm import COLUMNS, GROWN, ROWS, SAID
from tests.vmm.virtio_guest import CHUNK, MIB, Guest, boot, crc

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
EVERYTHING = "features,queues,disk,grow,blocks,rng,console,window,{ports}link,net"
QUEUES = "features,disk,online,queues,blocks,net,interrupts"
STRACE = "strace -f --seccomp-bpf -qq -e trace=fdatasync,fallocate -e signal=none -o".split()
"""Only the calls that are asked for stop at the tracer."""
LINE = b"good morning\n"
MEMORY = "64"
"""MiB: a kernel looks at each page when it starts, which costs an emulated one a tenth of a second for each MiB."""


class Boot(NamedTuple):
    """What one machine is like."""

    transport: str
    ring: str
    cpus: int
    net: str
    format: str

    def __str__(self) -> str:
        return "-".join(map(str, self))

    @property
    def ports(self) -> bool:
        """Whether its console has ports for programs; with and without, it is told of its size in different ways."""
        return self.cpus == 1 and self.ring == "packed"

    @property
    def words(self) -> str:
        """What the kernel and the init are told."""
        if self.cpus == 1:
            return "do=" + EVERYTHING.format(ports="port,late," * self.ports)
        # an emulated kernel spends its processors' ticks on balancing their load; the init says itself what runs where
        return f"do={QUEUES} maxcpus=1 isolcpus=1-{self.cpus - 1} skew_tick=1"

    def options(self, folder: Path) -> list[str]:
        """What the VMM is told, but for the second disk."""
        net = f"tap=tap0,queues={self.cpus}" if self.net == "tap" else "user"
        words = f"--disk {folder}/disk,serial=lesson --net {net},capture={folder}/frames --memory {MEMORY}"
        words += f" --transport {self.transport} --ring {self.ring} --cpus {self.cpus}"
        words += " --rng --console" * (self.cpus == 1) + f" --port lesson={folder}/lesson" * self.ports
        return words.split()


CI = [Boot("mmio", "packed", 1, "tap", "raw"), Boot("pci", "split", 1, "user", "qcow2")]
ALL = [
    Boot(transport, ring, cpus, "user" if (transport, cpus) == ("pci", 1) else "tap", "raw")
    for transport in ("mmio", "pci")
    for ring in ("split", "packed")
    for cpus in (1, 4)
]


class Run(NamedTuple):
    """One boot, and what it was given."""

    boot: Boot
    guest: Guest
    folder: Path
    network: vg.Network
    content: bytes
    blocks: bytes
    trace: str
    client: vg.Client | None


def run(folder: Path, size: int, machine: Boot) -> Run:
    install(["e2fsprogs", "strace", "qemu-utils", "qemu-system-common"], "which make disks and watch them")
    content, blocks = os.urandom(300_000), os.urandom(4 * MIB)
    vg.make_ext2(folder / "disk", content)
    (folder / "blocks").write_bytes(blocks)
    second, format_ = f"{folder}/blocks", machine.format
    if format_ != "raw":
        subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", format_, second, folder / "blocks.image"], check=True)
        second = f"{folder}/blocks.image,format={format_}"
    client = vg.Client(folder / "lesson", LINE) if machine.ports else None
    with vg.namespace(machine.net, folder, size, machine.cpus) as network:
        guest = boot(
            f"{machine.words} {network.words}",
            [*machine.options(folder), "--disk", second],
            prefix=[*network.prefix, *STRACE, f"{folder}/trace"],
            typed=LINE.decode(),
            when="hello from the guest",
        )
    trace = (folder / "trace").read_text()
    return Run(machine, guest, folder, network, content, blocks, trace, client)


def ring_of(guest: Guest) -> list[str]:
    features = guest.output.split("features ")[1:]
    return ["packed" if each[RING_PACKED] == "1" else "split" for each in features]


def check_everything(done: Run) -> None:
    guest, cpus = done.guest, done.boot.cpus
    assert guest.status == 0, guest.output + guest.errors
    guest.said("virtio: done")
    assert "failed" not in guest.output
    assert ring_of(guest) == [done.boot.ring] * (5 if cpus == 1 else 3)
    check_disk(done)
    check_blocks(done)
    check_net(done)
    check_queues(done)
    if cpus == 1:
        guest.said("rng: from virtio_rng.0 64 bytes")
        check_console(done)
        check_changes(done)
    if done.client is not None:
        check_ports(guest, done.client)


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


def check_blocks(done: Run) -> None:
    expected = done.blocks[:MIB]
    fourth = bytearray(done.blocks[3 * MIB :])
    for cpu in range(done.boot.cpus):
        read, written = done.blocks[cpu * 4096 :][:4096], vg.pattern(CHUNK, 100 + cpu)
        done.guest.said(rf"blocks: processor {cpu} read 4096 bytes, crc {crc(read)}")
        done.guest.said(rf"blocks: processor {cpu} wrote {CHUNK} bytes, crc {crc(written)}")
        fourth[cpu * CHUNK : (cpu + 1) * CHUNK] = written
    path, format_ = done.folder / "blocks", done.boot.format
    if format_ != "raw":
        image = done.folder / "blocks.image"
        assert subprocess.run(["qemu-img", "check", "-q", image], check=False).returncode == 0
        subprocess.run(["qemu-img", "convert", "-f", format_, "-O", "raw", image, path], check=True)
    after = path.read_bytes()
    assert after[:MIB] == expected
    assert after[2 * MIB : 3 * MIB] == bytes(MIB)
    assert after[3 * MIB :] == fourth
    assert path.stat().st_blocks * 512 <= 3 * MIB, "the second MiB is a hole"
    assert "FALLOC_FL_PUNCH_HOLE" in done.trace


def check_net(done: Run) -> None:
    guest, size, cpus = done.guest, len(done.network.content), done.boot.cpus
    guest.said(r"net: address of 52:54:00:\S+ mtu \d+")
    guest.said("net: ping came back with 56 bytes")
    fetched = rf"fetched {size} bytes, crc {crc(done.network.content)}"
    sent = [crc(vg.pattern(size, 2 + cpu)) for cpu in range(cpus)]
    for cpu, checksum in enumerate(sent):
        answered = rf"sent {size} bytes, crc {checksum}\s+net: answered 6 bytes, crc {crc(b'thanks')}"
        guest.said(rf"net: processor {cpu}\s+net: {fetched}\s+net: {answered}")
    assert [f"{checksum:08x}" for checksum in done.network.received] == sent
    assert (done.folder / "frames").stat().st_size > 2 * size * cpus
    assert (done.boot.net == "tap") == (done.folder / "leases").exists()


def check_queues(done: Run) -> None:
    """Linux has a queue for each processor, and each was used: each processor did something by itself."""
    guest, cpus = done.guest, done.boot.cpus
    guest.said(f"queues: block {cpus} receive {cpus} transmit {cpus}")
    used = [[int(count) for count in line.split()[2:]] for line in guest.errors.splitlines() if " used " in line]
    second, net = used[1], used[2]
    assert len(second) == cpus
    assert all(second), guest.errors
    assert all(net[: 2 * cpus]), guest.errors
    if done.boot.transport == "pci" and cpus > 1:
        for name in ("req", "input", "output"):
            for queue in range(cpus):
                guest.said(rf"interrupt: .*virtio\d-{name}\.{queue}")


def check_console(done: Run) -> None:
    guest = done.guest
    guest.said("hello from the guest")
    guest.said("it said: good morning")
    guest.said(rf"console: got {len(LINE)} bytes, crc {crc(LINE)}")
    guest.said(rf"window: signal {signal.SIGWINCH:d} columns {COLUMNS} rows {ROWS}\b")


def check_ports(guest: Guest, client: vg.Client) -> None:
    guest.said(rf"port: got {len(LINE)} bytes, crc {crc(LINE)}")
    client.join(10)
    assert client.heard == b"hello from the guest\nit said: " + LINE
    guest.said(rf"late: got {len(SAID)} bytes, crc {crc(SAID)}")
    guest.said("late: gone")


def check_changes(done: Run) -> None:
    guest = done.guest
    guest.said(rf"grow: from {8 * MIB} to {8 * MIB + GROWN} bytes, sectors {(8 * MIB + GROWN) // 512}\b")
    guest.said(r"link: carrier 0\s+link: carrier 1")
    mac = bytes.fromhex(guest.said(r"net: address of (\S+)")[1].replace(":", ""))
    assert any(is_announcement(frame, mac) for frame in vg.captured(done.folder / "frames"))


def is_announcement(frame: bytes, mac: bytes) -> bool:
    """Whether it is an ARP packet by which a card says to everybody which address is its own."""
    arp = frame[12:14] == b"\x08\x06"
    return arp and frame[:6] == b"\xff" * 6 and frame[22:28] == mac and frame[28:32] == frame[38:42] != bytes(4)


@pytest.mark.parametrize("machine", CI, ids=str)
def test_linux_uses_every_device(machine: Boot, tmp_path: Path) -> None:
    """Half a MiB each way: by tap that is more frames than a ring has places."""
    check_everything(run(tmp_path, MIB // 2, machine))


@pytest.mark.slow
@pytest.mark.parametrize("machine", ALL, ids=str)
def test_the_whole_matrix(machine: Boot, tmp_path: Path) -> None:
    """8 MiB each way, in one connection or in one by each queue."""
    check_everything(run(tmp_path, 8 * MIB // machine.cpus, machine))
