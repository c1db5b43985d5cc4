"""Arm's interrupt controller as KVM devices: addresses, size, and registers by attribute (kvm/devices/arm-vgic-v3.rst).

`state.VmState` saves and restores what is in them.
"""

from __future__ import annotations

import struct

from pyvmm_kvm.device import DeviceFd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_kvm.vm import VmFd

GRP_ADDR, GRP_DIST_REGS, GRP_CPU_REGS, GRP_NR_IRQS, GRP_CTRL, GRP_REDIST_REGS = range(6)
GRP_CPU_SYSREGS, GRP_LEVEL_INFO, GRP_ITS_REGS, GRP_MAINT_IRQ = range(6, 10)
V2_ADDR_DIST, V2_ADDR_CPU, V3_ADDR_DIST, V3_ADDR_REDIST, ITS_ADDR, V3_ADDR_REDIST_REGION = range(6)
CTRL_INIT, ITS_SAVE_TABLES, ITS_RESTORE_TABLES, SAVE_PENDING_TABLES, ITS_CTRL_RESET = range(5)
_LINE_LEVEL = 0 << 10  # VGIC_LEVEL_INFO_LINE_LEVEL
V2_DIST_SIZE, V2_CPU_SIZE = 0x1000, 0x2000
V3_DIST_SIZE, V3_REDIST_SIZE, V3_ITS_SIZE = 0x10000, 0x20000, 0x20000


def redist_region(base: int, count: int, index: int = 0) -> int:
    """Return what describes a region of redistributors: base in bits 16 to 51, how many from bit 52 on.

    >>> hex(redist_region(0x80A0000, 2))
    '0x200000080a0000'
    """
    if base % V3_DIST_SIZE or base >> 52 or count >> 12 or index >> 12:
        raise ValueError(f"a region of at most 4095 redistributors lies at a multiple of 64 KiB, not at {base:#x}")
    return base | count << 52 | index


def v3_attr(mpidr: int, offset: int) -> int:
    """Return the attribute of a register of the distributor, a redistributor or a CPU interface: affinity, offset.

    `mpidr` is the affinity as the device wants it, Aff3 to Aff0 in four bytes.
    """
    return mpidr << 32 | offset


def affinity(mpidr_el1: int) -> int:
    """Return Aff3.Aff2.Aff1.Aff0 in four bytes, from a vCPU's MPIDR_EL1."""
    return (mpidr_el1 >> 32 & 0xFF) << 24 | mpidr_el1 & 0xFFFFFF


class _Vgic:
    __slots__ = ("device",)

    def __init__(self, vm: VmFd, kind: int) -> None:
        device = vm.create_device(kind)
        if device is None:
            raise TypeError("create_device answers None only to a test")
        self.device: DeviceFd = device

    def _put(self, group: int, attr: int, code: str, value: int) -> None:
        self.device.set_device_attr(group, attr, bytearray(struct.pack(code, value)))

    def set_nr_irqs(self, count: int) -> None:
        """Set how many interrupts there are, the 32 private ones included: a multiple of 32 up to 1024."""
        self._put(GRP_NR_IRQS, 0, "<I", count)

    def get_nr_irqs(self) -> int:
        """Return that number."""
        return int.from_bytes(self.device.get_device_attr(GRP_NR_IRQS, 0, 4), "little")

    def init(self) -> None:
        """Complete it, once addresses, size and vCPUs are settled."""
        self.device.set_device_attr(GRP_CTRL, CTRL_INIT)

    def get_dist_reg(self, offset: int, mpidr: int = 0) -> int:
        """Read a 32-bit register of the distributor."""
        data = self.device.get_device_attr(GRP_DIST_REGS, v3_attr(mpidr, offset), 4)
        return int.from_bytes(data, "little")

    def set_dist_reg(self, offset: int, value: int, mpidr: int = 0) -> None:
        """Write one."""
        self._put(GRP_DIST_REGS, v3_attr(mpidr, offset), "<I", value)

    def close(self) -> None:
        """Give the descriptor back; the device lives as long as the VM."""
        self.device.close()


class VgicV2(_Vgic):
    """The GICv2."""

    __slots__ = ()

    def __init__(self, vm: VmFd, distributor: int, cpu: int) -> None:
        super().__init__(vm, DeviceFd.ARM_VGIC_V2)
        self._put(GRP_ADDR, V2_ADDR_DIST, "<Q", distributor)
        self._put(GRP_ADDR, V2_ADDR_CPU, "<Q", cpu)


class VgicV3(_Vgic):
    """The GICv3: a distributor, and one region with `count` redistributors."""

    __slots__ = ()

    def __init__(self, vm: VmFd, distributor: int, redistributors: int, count: int) -> None:
        super().__init__(vm, DeviceFd.ARM_VGIC_V3)
        self._put(GRP_ADDR, V3_ADDR_DIST, "<Q", distributor)
        self._put(GRP_ADDR, V3_ADDR_REDIST_REGION, "<Q", redist_region(redistributors, count))

    def get_redist_reg(self, mpidr: int, offset: int) -> int:
        """Read a 32-bit register of a redistributor."""
        return int.from_bytes(self.device.get_device_attr(GRP_REDIST_REGS, v3_attr(mpidr, offset), 4), "little")

    def set_redist_reg(self, mpidr: int, offset: int, value: int) -> None:
        """Write one."""
        self._put(GRP_REDIST_REGS, v3_attr(mpidr, offset), "<I", value)

    def get_cpu_sysreg(self, mpidr: int, encoding: int) -> int:
        """Read a 64-bit register of a CPU interface; `encoding` as `registers.sys_reg` makes it of op0 to op2."""
        data = self.device.get_device_attr(GRP_CPU_SYSREGS, v3_attr(mpidr, encoding & 0xFFFF), 8)
        return int.from_bytes(data, "little")

    def set_cpu_sysreg(self, mpidr: int, encoding: int, value: int) -> None:
        """Write one."""
        self._put(GRP_CPU_SYSREGS, v3_attr(mpidr, encoding & 0xFFFF), "<Q", value)

    def get_levels(self, first: int, mpidr: int = 0) -> int:
        """Return which of 32 input lines are asserted, from interrupt `first` on, a multiple of 32."""
        data = self.device.get_device_attr(GRP_LEVEL_INFO, v3_attr(mpidr, _LINE_LEVEL | first), 4)
        return int.from_bytes(data, "little")

    def set_levels(self, first: int, lines: int, mpidr: int = 0) -> None:
        """Set them."""
        self._put(GRP_LEVEL_INFO, v3_attr(mpidr, _LINE_LEVEL | first), "<I", lines)

    def save_pending_tables(self) -> None:
        """Write the pending bits of all LPIs into guest memory, before it is saved."""
        self.device.set_device_attr(GRP_CTRL, SAVE_PENDING_TABLES)


class VgicIts(_Vgic):
    """The interrupt translation service of a GICv3."""

    __slots__ = ()

    def __init__(self, vm: VmFd, address: int) -> None:
        super().__init__(vm, DeviceFd.ARM_VGIC_ITS)
        self._put(GRP_ADDR, ITS_ADDR, "<Q", address)

    def save_tables(self) -> None:
        """Write the device, collection and translation tables into guest memory, before it is saved."""
        self.device.set_device_attr(GRP_CTRL, ITS_SAVE_TABLES)

    def restore_tables(self) -> None:
        """Read them back from there."""
        self.device.set_device_attr(GRP_CTRL, ITS_RESTORE_TABLES)

    def reset(self) -> None:
        """Reset it."""
        self.device.set_device_attr(GRP_CTRL, ITS_CTRL_RESET)

    def get_reg(self, offset: int) -> int:
        """Read a 64-bit register."""
        return int.from_bytes(self.device.get_device_attr(GRP_ITS_REGS, offset, 8), "little")

    def set_reg(self, offset: int, value: int) -> None:
        """Write one."""
        self._put(GRP_ITS_REGS, offset, "<Q", value)
