"""The VM calls that only arm64 has: the preferred processor, SMCCC filter, memory tags, counter offset, register masks.

The SMCCC filter, the counter offset and the masks are checked byte for byte against the kernel's headers only: they
need a kernel newer than any that this ran on.
"""

from __future__ import annotations

from pyvmm_kvm._kvm import ffi
from pyvmm_kvm.aarch64.structs import CounterOffset, DeviceAddr, SmcccFilter, VcpuInit
from pyvmm_kvm.device_attrs import DeviceAttrs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

SMCCC_CTRL, SMCCC_FILTER = 0, 0
TAGS_TO_GUEST, TAGS_FROM_GUEST = 0, 1
_GRANULE = 16
_FEATURE_ID_RANGE_SIZE = 3 * 8 * 8

IRQ_TYPE_CPU, IRQ_TYPE_SPI, IRQ_TYPE_PPI = 0, 1, 2


def irq_number(kind: int, number: int, vcpu: int = 0) -> int:
    """Return what `VmFd.set_irq_line` takes on arm64: a type, a vCPU for the types with one, and a number, in one.

    >>> hex(irq_number(IRQ_TYPE_PPI, 27, vcpu=300))
    '0x122c001b'
    """
    # KVM_CAP_ARM_IRQ_LINE_LAYOUT_2: vCPUs above 255 use the four bits at the top
    return vcpu >> 8 << 28 | kind << 24 | (vcpu & 0xFF) << 16 | number


class ArchVm(DeviceAttrs):
    """What `VmFd` adds on arm64."""

    __slots__ = ()

    def get_preferred_target(self) -> VcpuInit:
        """Return the processor that this host emulates best, for `VcpuFd.vcpu_init`."""
        return self.get_struct("KVM_ARM_PREFERRED_TARGET", VcpuInit)

    def set_device_addr(self, device: int, kind: int, address: int) -> None:
        """Set where a device of the old kind lies (`KVM_ARM_DEVICE_VGIC_V2` is 0); use device attributes instead."""
        self.set_struct("KVM_ARM_SET_DEVICE_ADDR", DeviceAddr, DeviceAddr(id=device << 16 | kind, addr=address))

    def set_smccc_filter(self, base: int, nr_functions: int, action: int) -> None:
        """Handle (0), deny (1) or forward (2) a range of SMCCC calls; before the first vCPU runs, ranges disjoint."""
        entry = SmcccFilter(base=base, nr_functions=nr_functions, action=action)
        self.set_device_attr(SMCCC_CTRL, SMCCC_FILTER, entry.view())

    def has_smccc_filter(self) -> bool:
        """Say whether this kernel filters SMCCC calls."""
        return self.has_device_attr(SMCCC_CTRL, SMCCC_FILTER)

    def copy_mte_tags(self, guest_ipa: int, tags: Buffer, *, to_guest: bool) -> int:
        """Move memory tags, one byte for each 16 bytes of guest memory; return how many bytes of memory.

        `guest_ipa` is page-aligned and `tags` has one byte for each granule of whole pages.
        """
        with ffi.from_buffer("char[]", tags, require_writable=not to_guest) as block:
            length = len(block) * _GRANULE
            flags = TAGS_TO_GUEST if to_guest else TAGS_FROM_GUEST
            return self.ioctl(
                "KVM_ARM_MTE_COPY_TAGS", ffi.new("struct arm64_copy_mte_tags *", (guest_ipa, length, block, flags))
            )

    def set_counter_offset(self, offset: int) -> None:
        """Set the guest's virtual and physical counters back by this much."""
        self.set_struct("KVM_ARM_SET_COUNTER_OFFSET", CounterOffset, CounterOffset(counter_offset=offset))

    def get_reg_writable_masks(self) -> list[int]:
        """Return the bits that may be written of each of the 192 feature id registers, in the order op1, CRm, op2."""
        masks = bytearray(8 * _FEATURE_ID_RANGE_SIZE)
        with ffi.from_buffer("char[]", masks) as block:
            address = int(ffi.cast("unsigned long", block))
            self.ioctl("KVM_ARM_GET_REG_WRITABLE_MASKS", ffi.new("struct arm64_reg_mask_range *", (address,)))
        return list(memoryview(masks).cast("Q"))
