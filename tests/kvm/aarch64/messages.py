"""An ITS that is set up from outside, as a guest would do it: one device, one event, one LPI."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from pyvmm_kvm.aarch64.platform import affinity
from pyvmm_kvm.aarch64.registers import MPIDR_EL1

from .machine import ITS

if TYPE_CHECKING:
    from .machine import Machine

TRANSLATER = ITS + 0x10040  # where messages are written
# commands of an ITS: 32 bytes each (GICv3, IHI 0069, 5.3)
DEVICE, EVENT, LPI = 0x18, 3, 8200
QUEUE, DEVICES, COLLECTIONS, TRANSLATIONS, PROPERTIES, PENDING = 0x40000, 0x50000, 0x60000, 0x70000, 0x80000, 0x90000
VALID = 1 << 63


def with_messages(guest: Machine) -> None:
    """Give it tables and a queue of commands, and switch the LPIs on."""
    its = guest.its
    assert its is not None
    where = affinity(guest.vcpu.get_one_reg(MPIDR_EL1))
    guest.gic.set_dist_reg(0x0, 0x12)
    guest.gic.set_redist_reg(where, 0x70, PROPERTIES | 13)  # 2 ** 14 interrupts
    guest.gic.set_redist_reg(where, 0x78, PENDING)
    guest.memory[PROPERTIES + LPI - 8192] = 0xA0 | 1  # its priority, and enabled
    guest.gic.set_redist_reg(where, 0x0, 1)
    its.set_reg(0x100, VALID | its.get_reg(0x100) & 0x071F << 48 | DEVICES)
    its.set_reg(0x108, VALID | its.get_reg(0x108) & 0x071F << 48 | COLLECTIONS)
    its.set_reg(0x80, VALID | QUEUE)
    commands = (
        (8 | DEVICE << 32, 4, VALID | TRANSLATIONS, 0),  # MAPD, 5 bits of events
        (9, 0, VALID, 0),  # MAPC: collection 0 is processor 0
        (0xA | DEVICE << 32, EVENT | LPI << 32, 0, 0),  # MAPTI
    )
    for at, command in enumerate(commands):
        struct.pack_into("<4Q", guest.memory, QUEUE + 32 * at, *command)
    its.set_reg(0x0, 1)
    its.set_reg(0x88, 32 * len(commands))
