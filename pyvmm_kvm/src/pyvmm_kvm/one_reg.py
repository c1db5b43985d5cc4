"""Registers by their 64-bit ids, one at a time: KVM_GET_ONE_REG, KVM_SET_ONE_REG and KVM_GET_REG_LIST."""

from __future__ import annotations

import errno
import struct

from pyvmm_kvm._kvm import ffi
from pyvmm_kvm.errors import KvmError, StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    from typing_extensions import Buffer

    from pyvmm_kvm.fd import Fd

MAX_REGISTERS = 1 << 16
LARGEST = 8  # KVM_REG_SIZE_U2048, as a power of two


class RegList(list[int]):
    """Register ids (struct kvm_reg_list).

    >>> RegList.from_bytes(bytes(RegList([5, 7]))) == [5, 7]
    True
    """

    __slots__ = ()

    def retain(self, keep: Callable[[int], bool]) -> None:
        """Drop every id for which `keep` is false."""
        self[:] = filter(keep, self)

    def __bytes__(self) -> bytes:
        return struct.pack(f"<{1 + len(self)}Q", len(self), *self)

    @classmethod
    def from_bytes(cls, data: Buffer) -> Self:
        """Read a struct kvm_reg_list; `StateError` where the count and the length disagree."""
        view = memoryview(data).cast("B")
        count = struct.unpack_from("<Q", view)[0] if len(view) >= 8 else MAX_REGISTERS + 1
        if count > MAX_REGISTERS or len(view) < 8 + 8 * count:
            raise StateError(f"{len(view)} bytes do not hold the register ids that they announce")
        return cls(struct.unpack_from(f"<{count}Q", view, 8))

    def __repr__(self) -> str:
        return f"RegList([{', '.join(format(register, '#x') for register in self)}])"


def reg_size(register: int) -> int:
    """Return how many bytes a register of this id has.

    >>> reg_size(0x2030_0002_0000_0000)
    8
    """
    return 1 << (register >> 52 & 0xF)


def get_one_reg(fd: Fd, register: int) -> int:
    """Read a register of this vCPU."""
    value = bytearray(reg_size(register))
    with ffi.from_buffer("char[]", value) as data:
        address = int(ffi.cast("unsigned long", data))
        fd.ioctl("KVM_GET_ONE_REG", ffi.new("struct kvm_one_reg *", (register, address)))
    return int.from_bytes(value, "little")


def set_one_reg(fd: Fd, register: int, value: int) -> None:
    """Write it."""
    with ffi.from_buffer("char[]", value.to_bytes(reg_size(register), "little")) as data:
        address = int(ffi.cast("unsigned long", data))
        fd.ioctl("KVM_SET_ONE_REG", ffi.new("struct kvm_one_reg *", (register, address)))


def get_reg_list(fd: Fd) -> RegList:
    """Return the ids that the vCPU knows."""
    buffer = bytearray(8)
    # the kernel answers the first, empty list with E2BIG and the number that it needs
    for _ in range(2):
        try:
            with ffi.from_buffer("char[]", buffer) as argument:
                fd.ioctl("KVM_GET_REG_LIST", argument)
            break
        except KvmError as error:
            if error.errno != errno.E2BIG:
                raise
            buffer = bytearray(buffer[:8]) + bytes(8 * min(struct.unpack("<Q", buffer[:8])[0], MAX_REGISTERS))
    return RegList.from_bytes(buffer)
