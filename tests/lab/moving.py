"""A machine that moves while its guest runs: saved, closed, and gone on with by another one.

Once the guest has said one of `MOMENTS`, its vCPUs and virtio devices are paused, and with half a word typed that it
has not read yet, everything is saved as bytes. The machine is closed, another of the same kind and arguments is made,
gets all of that, and runs the guest to its end; the rest of the word is typed there. A program of an architecture says
what is its own.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from minimal_vmm import Machine
from pyvmm_device import Pl011, Pl031, Plic, Serial
from pyvmm_device.state import restore_parts, save_parts
from pyvmm_kvm.one_reg import reg_size
from pyvmm_kvm.reg_state import read_registers
from pyvmm_virtio.transport import VirtioMmio
from terminal import Console

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Container, Iterator

    from pyvmm_kvm import VcpuFd
    from pyvmm_memory import GuestMemoryMmap
    from pyvmm_virtio.device import VirtioDevice

WAITS = b"type a line"
MOMENTS = (WAITS, b"disk: read")
"""The demo's init waits for input; that of the virtio devices has read from a disk and not written yet."""
BEFORE, AFTER = b"hel", b"lo\npoweroff\n"
DEVICES = (Pl011, Pl031, Plic, Serial, VirtioMmio)
PATIENCE = 1.0
"""Seconds for the guest to become idle, so that only an interrupt gets it to read what is typed."""
CHUNK = 1 << 16
Thing = TypeVar("Thing")


@dataclass
class Snapshot:
    """A machine between two VMs."""

    vcpus: list[bytes]
    vm: bytes
    devices: str
    memory: dict[int, bytes]
    waits: bool


class Watcher(Console):
    """A console that says when the moment has come."""

    def __init__(self, machine: MovingMachine) -> None:
        super().__init__(machine.output)
        self.machine = machine

    def read_line(self, line: bytes) -> None:
        """Look for what the init says."""
        super().read_line(line)
        if not self.machine.moved and any(moment in line for moment in MOMENTS):
            waits = WAITS in line
            self.machine.loop.call_later(PATIENCE * waits, lambda: self.machine.save(waits))


class MovingMachine(Machine):
    """Saves itself when the guest has come to the moment, or is made of what another has saved."""

    vcpus: list[Any]  # with their architecture's calls, as the states below
    vcpu_state: Any
    vm_state: Any
    going_on: Container[int]
    """The registers that count time."""
    snapshot: Snapshot | None = None
    moved = False

    def of_vcpu(self, vcpu: VcpuFd) -> tuple[Any, ...]:
        """Return what else a vCPU is saved with."""
        return ()

    def of_vm(self) -> tuple[Any, ...]:
        """Return what a VM's state is saved of, and restored to."""
        raise NotImplementedError

    def owned_of(self, kind: type[Thing]) -> Thing | None:
        """Return the one thing of a kind that this machine owns, or None."""
        return next((thing for thing in self.owned if isinstance(thing, kind)), None)

    def make_console(self) -> Console:
        """Listen to the guest."""
        return Watcher(self)

    def devices(self) -> dict[str, Any]:
        """Return the devices of our own, by where they are."""
        found: dict[str, Any] = {hex(at.base): device for at, device in self.io.mmio if isinstance(device, DEVICES)}
        if self.virtio and self.virtio.root:
            found["pci"] = self.virtio.root
        return found

    def virtio_devices(self) -> list[VirtioDevice]:
        """Return those that may have requests under way."""
        return self.virtio.devices if self.virtio else []

    def save(self, waits: bool) -> None:
        """Save everything, and end; memory comes last, because KVM writes an ITS's tables there."""
        self.control.pause()
        if waits:
            assert self.serial.enqueue(BEFORE) == len(BEFORE)
        for device in self.virtio_devices():
            device.pause()
        vcpus = [bytes(self.vcpu_state.save(vcpu, *self.of_vcpu(vcpu))) for vcpu in self.vcpus]
        vm = bytes(self.vm_state.save(*self.of_vm()))
        devices = json.dumps(save_parts("machine", self.devices()))
        memory = {at: content for at, content in chunks(self.memory) if content != bytes(len(content))}
        self.snapshot = Snapshot(vcpus, vm, devices, memory, waits)
        self.finish(0, "the guest was saved")

    def load(self, snapshot: Snapshot) -> None:
        """Become what another was, and say what is not the same."""
        self.moved = True
        for at, content in chunks(self.memory):
            wanted = snapshot.memory.get(at, bytes(len(content)))
            if content != wanted:
                self.memory.write_slice(wanted, at)
        results = [self.load_vcpu(vcpu, data) for vcpu, data in zip(self.vcpus, snapshot.vcpus, strict=True)]
        refused, differ = [
            sorted({hex(register) for one in found for register in one}) for found in zip(*results, strict=True)
        ]
        self.vm_state.from_bytes(snapshot.vm).restore(*self.of_vm())
        assert self.vm_state.save(*self.of_vm()) == self.vm_state.from_bytes(snapshot.vm), "another state of the VM"
        restore_parts("machine", self.devices(), json.loads(snapshot.devices))
        for device in self.virtio_devices():
            device.resume()
        if snapshot.waits:
            self.loop.call_later(PATIENCE, self.type_rest)
        print(f"\nmoved {len(self.vcpus)} vCPUs, {len(snapshot.memory) * CHUNK >> 20} MiB, {', '.join(self.devices())}")
        print(f"refused {refused}, other values in {differ}", flush=True)

    def type_rest(self) -> None:
        """Type what was not typed before."""
        assert self.serial.enqueue(AFTER) == len(AFTER)

    def load_vcpu(self, vcpu: VcpuFd, data: bytes) -> tuple[list[int], list[int]]:
        """Restore a vCPU; returns the registers that were refused, and those that have another value."""
        state = self.vcpu_state.from_bytes(data)
        refused: list[int] = state.restore(vcpu)
        # not by saving it, which is to run it: a VM that has run takes some registers no longer
        before, after = by_id(state.parts["registers"]), by_id(read_registers(vcpu))
        assert before.keys() == after.keys(), "another list of registers"
        assert bytes(vcpu.get_mp_state()) == state.parts["mp_state"]
        return refused, [one for one in before if before[one] != after[one] and one not in self.going_on]


def chunks(memory: GuestMemoryMmap) -> Iterator[tuple[int, bytes]]:
    """Return all memory in pieces, with their addresses."""
    for region in memory:
        view = memoryview(region.buffer)
        for at in range(0, len(view), CHUNK):
            yield region.start + at, bytes(view[at : at + CHUNK])


def by_id(data: bytes) -> dict[int, bytes]:
    """Return the registers of a state, by id."""
    found = {}
    at = 0
    while at < len(data):
        register = int.from_bytes(data[at : at + 8], "little")
        size = reg_size(register)
        found[register] = data[at + 8 : at + 8 + size]
        at += 8 + size
    return found


def main(kind: type[MovingMachine], read: Callable[[], argparse.Namespace]) -> int:
    """Boot what the command line says and go on with it in a second machine; returns the exit status."""
    arguments = read()
    first = kind(arguments)
    try:
        status, reason = first.run()
    finally:
        first.close()
    if first.snapshot is not None:
        second = kind(arguments)
        try:
            second.load(first.snapshot)
            status, reason = second.run()
            if status:
                print(second.control.report(), file=sys.stderr)
        finally:
            second.close()
    print(f"\n{kind.name}: {reason}", file=sys.stderr)
    return status
