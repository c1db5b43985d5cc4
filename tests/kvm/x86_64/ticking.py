"""A guest with a UART, a PIT and a LAPIC timer that interrupt it; run as a program it restores that guest and goes on.

The guest counts in memory: at COUNT its main loop, which also transmits the low byte, and behind it each interrupt.
"""

from __future__ import annotations

import json
import mmap
import os
import struct
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

from pyvmm_device import EventFdInterrupt, Serial
from pyvmm_kvm import Intr, IoIn, IoOut, Kvm, VcpuState, VmState, setup_real_mode

if TYPE_CHECKING:
    from pyvmm_kvm import VcpuFd, VmFd

COUNT, PIT_TICKS, LAPIC_TICKS, UART_TICKS = 0x3000, 0x3004, 0x3008, 0x300C
UART = 0x3F8
SIZE = 0x10000

PROGRAM = {
    0x1000: (
        "b011e620 b020e621 b004e621 b001e621 b0eee621"  # PIC: vectors from 0x20, interrupts 0 and 4 open
        "b034e643 b09ce640 b02ee640"  # PIT: channel 0, rate generator, 100 Hz
        "bafb03b080ee baf803b001ee bafb03b003ee baf903b002ee bafc03b00bee"  # UART: 115200 8n1, transmitter interrupt
        "fb"  # sti
        "66ff060030 a10030 baf803 ee ebf2"  # inc dword [COUNT]; mov ax,[COUNT]; out 0x3f8,al; again
    ),
    # PIT: count; end of interrupt to the PIC
    0x1200: "50 66ff060430 b020e620 58 cf",
    # LAPIC timer: count; end of interrupt to the LAPIC, where es points
    0x1240: "66ff060830 2666c706b00000000000 cf",
    # UART: count; read the cause, which takes it back; end of interrupt to the PIC
    0x1280: "50 52 66ff060c30 bafa03 ec b020e620 5a 58 cf",
}
VECTORS = {0x20: 0x1200, 0x24: 0x1280, 0x40: 0x1240}


class Machine:
    """The VM around that guest."""

    def __init__(self, kvm: Kvm, memory: bytes = b"") -> None:
        self.memory = mmap.mmap(-1, SIZE)
        self.memory[: len(memory)] = memory
        self.vm: VmFd = kvm.create_vm()
        self.vm.create_irq_chip()
        self.vm.create_pit2()
        self.vm.set_user_memory_region(0, 0, self.memory)
        self.vcpu: VcpuFd = self.vm.create_vcpu(0)
        self.event = EventFdInterrupt()
        self.vm.register_irqfd(self.event, 4)
        self.output = bytearray()
        self.serial = Serial(self.event, self)

    def write(self, data: bytes) -> None:
        """The other end of the UART."""
        self.output += data

    def power_on(self, kvm: Kvm) -> None:
        """The program, its vectors and a LAPIC timer of its own."""
        for address, code in PROGRAM.items():
            data = bytes.fromhex(code)
            self.memory[address : address + len(data)] = data
        for vector, address in VECTORS.items():
            struct.pack_into("<HH", self.memory, 4 * vector, address, 0)
        self.vcpu.set_cpuid2(kvm.get_supported_cpuid())
        setup_real_mode(self.vcpu, 0x1000)
        regs = self.vcpu.get_regs()
        regs.rsp = 0x8000
        self.vcpu.set_regs(regs)
        sregs = self.vcpu.get_sregs()
        sregs.es.base = 0xFEE00000
        self.vcpu.set_sregs(sregs)
        lapic = self.vcpu.get_lapic()
        # on; the PIC through LINT0; periodic on vector 0x40, every 10 ms of a bus of 1 GHz
        for offset, value in ((0xF0, 0x1FF), (0x350, 0x700), (0x3E0, 0xB), (0x320, 0x20040), (0x380, 10_000_000)):
            lapic.set_reg(offset, value)
        self.vcpu.set_lapic(lapic)

    def counts(self) -> tuple[int, ...]:
        """COUNT and the three kinds of interrupts."""
        return struct.unpack_from("<4I", self.memory, COUNT)

    def run_until(self, more: int, seconds: float = 30) -> None:
        """Until each kind of interrupt came `more` times and the main loop transmitted."""
        goal = [count + more for count in self.counts()[1:]]
        end = time.monotonic() + seconds
        transmitted = False
        while not transmitted or any(now < wanted for now, wanted in zip(self.counts()[1:], goal, strict=True)):
            if time.monotonic() > end:
                raise TimeoutError(f"the guest counted {self.counts()} and wanted {goal}")
            match self.vcpu.run():
                case IoOut(port, data):
                    self.serial.write(port - UART, data)
                    transmitted = port == UART
                case IoIn(port, data):
                    self.serial.read(port - UART, data)
                case Intr():
                    pass
                case other:
                    raise AssertionError(repr(other))

    def close(self) -> None:
        """Everything that was opened."""
        self.vcpu.close()
        self.vm.close()
        self.event.close()
        self.memory.close()


def save(kvm: Kvm, machine: Machine, folder: Path) -> None:
    """The whole machine as files."""
    (folder / "vcpu").write_bytes(bytes(VcpuState.save(kvm, machine.vm, machine.vcpu)))
    (folder / "vm").write_bytes(bytes(VmState.save(machine.vm)))
    (folder / "serial").write_text(json.dumps(machine.serial.state()))
    (folder / "memory").write_bytes(machine.memory[:])


def restore(kvm: Kvm, folder: Path) -> Machine:
    """And back."""
    machine = Machine(kvm, (folder / "memory").read_bytes())
    refused = VcpuState.from_bytes((folder / "vcpu").read_bytes()).restore(machine.vcpu)
    if refused:
        raise AssertionError(f"MSRs were refused: {refused}")
    VmState.from_bytes((folder / "vm").read_bytes()).restore(machine.vm)
    # last: it raises its pending interrupt again, which restoring the PIC would wipe out
    machine.serial.restore(json.loads((folder / "serial").read_text()))
    return machine


if __name__ == "__main__":
    with Kvm() as opened:
        again = restore(opened, Path(sys.argv[1]))
        begin = again.counts()
        again.run_until(5)
        facts = {
            "process": os.getpid(),
            "begin": begin,
            "end": again.counts(),
            "first": again.output[0],
            "sent": len(again.output),
            "baud": again.serial.baud_rate,
        }
        again.close()
    sys.stdout.write(json.dumps(facts))
