"""Virtio devices driven by the guest-free driver: a disk beside QEMU's vhost-user-blk, and a network card. Prints JSON.

python benchmarks/virtio_devices.py [--seconds N]

Both disks serve the same file from the page cache to the same driver, in alternation: ours in the driver's process and
thread, with its compiled data plane, QEMU's in a process of its own. A ratio is ours by QEMU's.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.vhost_user import drive_behind

from pyvmm_virtio.backends.datagram import DatagramNet
from pyvmm_virtio.backends.raw import RawFile
from pyvmm_virtio.backends.workers import WorkerDisk
from pyvmm_virtio.constants import block as b
from pyvmm_virtio.devices import Block, Net
from pyvmm_virtio.driver import drive

if TYPE_CHECKING:
    from pyvmm_virtio.driver.block import BlockDriver

SIZE = 256 << 20
ROUNDS = 5
WRITE = 2  # VRING_DESC_F_WRITE
CASES = {
    "4KiB_random_read_depth_1": (4096, 1, False, True),
    "4KiB_random_write_depth_1": (4096, 1, True, True),
    "4KiB_random_read_depth_32": (4096, 32, False, True),
    "4KiB_random_write_depth_32": (4096, 32, True, True),
    "1MiB_sequential_read": (1 << 20, 8, False, False),
    "1MiB_sequential_write": (1 << 20, 8, True, False),
}


class BlockWork:
    """Requests of one size, so many at a time."""

    def __init__(self, driver: BlockDriver, size: int, depth: int, write: bool, at_random: bool) -> None:
        self.driver = driver
        self.kind = b.VIRTIO_BLK_T_OUT if write else b.VIRTIO_BLK_T_IN
        self.chains = []
        for _ in range(depth):
            header, data, status = driver.arena.alloc(16), driver.arena.alloc(size, 4096), driver.arena.alloc(1)
            self.chains.append([(header, 16, 0), (data, size, 0 if write else WRITE), (status, 1, WRITE)])
        self.headers = [driver.memory.get_slice(chain[0][0], 16) for chain in self.chains]
        self.sectors = [at * size // 512 for at in range(SIZE // size)]
        if at_random:
            random.Random(1).shuffle(self.sectors)

    def run(self, seconds: float) -> float:
        """Do them for a time; returns how many there were in a second."""
        driver, sectors, kind = self.driver, self.sectors, self.kind
        pack = struct.Struct("<IIQ").pack
        begin = time.perf_counter()
        done, at = 0, 0
        while time.perf_counter() - begin < seconds:
            requests = []
            for chain, header in zip(self.chains, self.headers, strict=True):
                header[:] = pack(kind, 0, sectors[at])
                at = (at + 1) % len(sectors)
                requests.append(driver.submit_buffers(0, chain, kick=False))
            driver.kick(0)
            for request in requests:
                driver.wait(request)
            done += len(requests)
        taken = time.perf_counter() - begin
        self.check()
        return done / taken

    def check(self) -> None:
        """See that the last ones went well."""
        for chain in self.chains:
            with self.driver.memory.get_slice(chain[2][0], 1) as status:
                if status[0]:
                    raise SystemExit(f"the device answers with status {status[0]}")

    def close(self) -> None:
        """Give the memory back."""
        for header, chain in zip(self.headers, self.chains, strict=True):
            header.release()
            for addr, _, _ in chain:
                self.driver.arena.free(addr)


def start_qemu(image: str, folder: str) -> tuple[subprocess.Popen[bytes], str]:
    """QEMU's vhost-user-blk on the same file."""
    path = f"{folder}/vhost"
    command = ["qemu-storage-daemon", "--blockdev", f"driver=file,node-name=disk,filename={image},locking=off"]
    command += ["--export", f"type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={path},writable=on"]
    process = subprocess.Popen(command)
    while not os.path.exists(path):
        if process.poll() is not None:
            raise SystemExit("qemu-storage-daemon does not start")
        time.sleep(0.01)
    return process, path


def block(seconds: float) -> dict[str, object]:
    """Measure both disks, in alternation."""
    results: dict[str, object] = {}
    with tempfile.TemporaryDirectory() as folder:
        image = f"{folder}/disk"
        with open(image, "wb") as file:
            for _ in range(SIZE >> 20):
                file.write(os.urandom(1 << 20))
        qemu, path = start_qemu(image, folder)
        try:
            with (
                drive(Block(WorkerDisk(RawFile(image, lock=False), 2)), indirect=False) as ours,
                drive_behind(path) as theirs,
            ):
                for name, case in CASES.items():
                    works = [BlockWork(driver, *case) for driver in (ours, theirs)]
                    rates: list[list[float]] = [[], []]
                    for _ in range(ROUNDS):
                        for rate, work in zip(rates, works, strict=True):
                            rate.append(work.run(seconds))
                    for work in works:
                        work.close()
                    mine, peer = map(statistics.median, rates)
                    unit = "per_second" if case[0] == 4096 else "MiB_per_second"
                    results[name] = {
                        f"pyvmm_{unit}": round(mine),
                        f"qemu_{unit}": round(peer),
                        "ratio": round(mine / peer, 2),
                    }
        finally:
            qemu.terminate()
            qemu.wait()
    return results


def net(seconds: float) -> dict[str, object]:
    """Frames through a socketpair, one way and the other."""
    results: dict[str, object] = {}
    for size in (64, 65536 - 22):
        ours, theirs = DatagramNet.pair()
        device = Net(ours)
        with drive(device, start=False) as driver, theirs:
            driver.buffer_size = 4096  # Linux's are of a page where frames are large
            driver.start()
            frame = bytes(6) + os.urandom(size - 6)
            view = memoryview(bytearray(70000))
            begin, sent = time.perf_counter(), 0
            while time.perf_counter() - begin < seconds:
                requests = [driver.send(frame, kick=False) for _ in range(32)]
                driver.kick(1)
                while not all(request.done for request in requests):
                    while theirs.receive(0, [view]):
                        sent += 1
                    driver.kick(1, always=True)
                    driver.poll()
                while theirs.receive(0, [view]):
                    sent += 1
            results[f"send_{size}_bytes_per_second"] = round(sent / (time.perf_counter() - begin))
            begin, got = time.perf_counter(), 0
            payload = [memoryview(frame)]
            while time.perf_counter() - begin < seconds:
                for _ in range(16 if size < 1000 else 1):
                    theirs.send(0, payload)
                device.poll()
                driver.poll()
                got += len(driver.received[0])
                driver.received[0].clear()
            results[f"receive_{size}_bytes_per_second"] = round(got / (time.perf_counter() - begin))
        ours.close()
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=0.5, help="for each measurement (%(default)s)")
    seconds = parser.parse_args().seconds
    try:
        disks = block(seconds)
    except FileNotFoundError:
        disks = {"skipped": "qemu-storage-daemon is missing: install Debian's qemu-system-common"}
    print(json.dumps({"block": disks, "net": net(seconds)}, indent=2))


if __name__ == "__main__":
    main()
