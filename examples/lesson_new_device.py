#!/usr/bin/env python3
"""A lesson: a new device in fifteen lines, and a guest that uses it.

The device is a die. Its guest, a few instructions in real mode, says how many sides it shall have, rolls it five times
and sends each result to the serial port. Every access leaves the guest as an exit, and `IoManager` finds the device.
"""

from __future__ import annotations

import mmap
import random
import sys

from pyvmm_device import BusRange, IoManager, Register, RegisterDevice, Serial
from pyvmm_kvm import Hlt, IoIn, IoOut, Kvm, setup_real_mode


# the new device: from here
class Die(RegisterDevice):
    """A die: write how many sides it has, read a roll."""

    sides = Register(0, size=1, reset=6)
    roll = Register(4, size=1, writable=0)

    def __init__(self, seed: int | None = None) -> None:
        super().__init__()
        self.chance = random.Random(seed)

    @roll.on_read
    def throw(self) -> int:
        """Answer a read of the register."""
        return self.chance.randint(1, max(1, self.sides))


# to here

PORT, COM1, CODE_AT = 0x500, 0x3F8, 0x1000
GUEST = bytes.fromhex(
    "ba0005 b008 ee"  # mov $0x500, %dx; mov $8, %al; out %al, %dx        a die with eight sides
    "b90500"  # mov $5, %cx                                               five times:
    "ba0405 ec"  # mov $0x504, %dx; in %dx, %al                           roll it
    "0430 baf803 ee"  # add $'0', %al; mov $0x3f8, %dx; out %al, %dx      print the digit
    "e2f4 f4"  # loop; hlt
)


class Screen:
    """Where the serial port's output goes."""

    def write(self, data: bytes) -> None:
        """Print it."""
        sys.stdout.write(data.decode())


class NoInterrupt:
    """The guest polls, so nobody listens."""

    def trigger(self) -> None:
        """Do nothing."""


def main(seed: int | None = None) -> Die:
    """Run the guest to its end; returns the die."""
    die, io = Die(seed), IoManager()
    io.register_pio(die, [BusRange(PORT, 8)])
    io.register_pio(Serial(NoInterrupt(), Screen()), [BusRange(COM1, 8)])
    with mmap.mmap(-1, 1 << 16) as memory, Kvm() as kvm, kvm.create_vm() as vm:
        memory[CODE_AT : CODE_AT + len(GUEST)] = GUEST
        vm.set_user_memory_region(0, 0, memory)
        with vm.create_vcpu(0) as vcpu:
            setup_real_mode(vcpu, CODE_AT)
            while True:
                match exit_ := vcpu.run():
                    case IoOut(port, data):
                        io.pio_write(port, data, exit_.size)
                    case IoIn(port, data):
                        io.pio_read(port, data, exit_.size)
                    case Hlt():
                        break
    print()
    return die


if __name__ == "__main__":
    main()
