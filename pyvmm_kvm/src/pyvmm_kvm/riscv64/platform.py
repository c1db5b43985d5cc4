"""RISC-V's advanced interrupt architecture as a KVM device: APLIC and IMSIC by attribute (asm/kvm.h).

`state.VmState` saves and restores what is in it.
"""

from __future__ import annotations

import struct

from pyvmm_kvm.device import DeviceFd

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_kvm.vm import VmFd

GRP_CONFIG, GRP_ADDR, GRP_CTRL, GRP_APLIC, GRP_IMSIC = range(5)
CONFIG_MODE, CONFIG_IDS, CONFIG_SRCS, CONFIG_GROUP_BITS, CONFIG_GROUP_SHIFT, CONFIG_HART_BITS, CONFIG_GUEST_BITS = (
    range(7)
)
MODE_EMUL, MODE_HWACCEL, MODE_AUTO = range(3)
ADDR_APLIC, ADDR_IMSIC_FIRST = 0, 1
CTRL_INIT = 0
APLIC_SIZE, IMSIC_SIZE = 0x4000, 0x1000
IDS_MIN, IDS_MAX, SRCS_MAX = 63, 2048, 1024
_ISEL_BITS = 12


def imsic_attr(vcpu: int, selector: int) -> int:
    """Return the attribute of an indirect register of a vCPU's IMSIC.

    >>> hex(imsic_attr(3, 0x70))
    '0x3070'
    """
    return vcpu << _ISEL_BITS | selector & (1 << _ISEL_BITS) - 1


class Aia:
    """The interrupt controller of a VM; set it up, create the vCPUs, place it, then `init()`.

    Lines are for `VmFd.set_irq_line`: an irqfd raises one and never lowers it (arch/riscv/kvm/vm.c,
    kvm_arch_set_irq_inatomic), so that it is for messages.

    Args:
        vm: whose it is; none of its vCPUs has run.
        sources: how many lines the APLIC has.
        ids: the highest message of an IMSIC: 63, 127 and so on.
        mode: `MODE_EMUL`, `MODE_HWACCEL` or `MODE_AUTO`; without it KVM's own choice. A host whose processors have no
            guest interrupt files takes the first only.
    """

    __slots__ = ("device",)

    def __init__(self, vm: VmFd, *, sources: int = 96, ids: int = 255, mode: int | None = None) -> None:
        device = vm.create_device(DeviceFd.RISCV_AIA)
        if device is None:
            raise TypeError("create_device answers None only to a test")
        self.device: DeviceFd = device
        for attr, value in ((CONFIG_MODE, mode), (CONFIG_SRCS, sources), (CONFIG_IDS, ids)):
            if value is not None:
                self.set_config(attr, value)

    def set_config(self, attr: int, value: int) -> None:
        """Set one of the numbers that shape it, such as how many bits of a hart's index there are."""
        self.device.set_device_attr(GRP_CONFIG, attr, bytearray(struct.pack("<I", value)))

    def get_config(self, attr: int) -> int:
        """Return that number."""
        return int.from_bytes(self.device.get_device_attr(GRP_CONFIG, attr, 4), "little")

    def place(self, aplic: int | None, imsics: list[int]) -> None:
        """Set where the APLIC lies, if there is one, and each vCPU's IMSIC, in the order of their ids."""
        if aplic is not None:
            self.device.set_device_attr(GRP_ADDR, ADDR_APLIC, bytearray(struct.pack("<Q", aplic)))
        for number, address in enumerate(imsics):
            self.device.set_device_attr(GRP_ADDR, ADDR_IMSIC_FIRST + number, bytearray(struct.pack("<Q", address)))

    def init(self) -> None:
        """Complete it."""
        self.device.set_device_attr(GRP_CTRL, CTRL_INIT)

    def get_aplic_reg(self, offset: int) -> int:
        """Read a 32-bit register of the APLIC."""
        return int.from_bytes(self.device.get_device_attr(GRP_APLIC, offset, 4), "little")

    def set_aplic_reg(self, offset: int, value: int) -> None:
        """Write one."""
        self.device.set_device_attr(GRP_APLIC, offset, bytearray(struct.pack("<I", value)))

    def get_imsic_reg(self, vcpu: int, selector: int) -> int:
        """Read an indirect register of a vCPU's IMSIC, 64 bits."""
        return int.from_bytes(self.device.get_device_attr(GRP_IMSIC, imsic_attr(vcpu, selector), 8), "little")

    def set_imsic_reg(self, vcpu: int, selector: int, value: int) -> None:
        """Write one."""
        self.device.set_device_attr(GRP_IMSIC, imsic_attr(vcpu, selector), bytearray(struct.pack("<Q", value)))

    def close(self) -> None:
        """Give the descriptor back; the device lives as long as the VM."""
        self.device.close()
