"""The extended state of a vCPU (XSAVE area) and the state of a guest hypervisor: blocks whose size the VM says."""

from __future__ import annotations

import struct

from pyvmm_kvm.errors import StateError
from pyvmm_kvm.near import Exact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self

    from typing_extensions import Buffer

# offsets and sizes in the legacy region and the header behind it (Intel SDM volume 1, 13.4)
_MXCSR, _XMM, _XMM_SIZE = 24, 160, 16
_LEGACY, _HEADER = 512, 64
# more than any processor has: AMX's tiles make it 11 KiB
_LARGEST = 1 << 16

# state components in the order of their bits (Intel SDM volume 1, 13.1)
COMPONENTS = (
    "x87", "sse", "avx", "bndregs", "bndcsr", "opmask", "zmm_hi256", "hi16_zmm", "pt", "pkru", "pasid", "cet_u",
    "cet_s", "hdc", "uintr", "lbr", "hwp", "tilecfg", "tiledata", "apx",
)  # fmt: skip


class Xsave2(Exact, bytearray):
    """An XSAVE area (struct kvm_xsave with its extra part): bytes, with the fields that have a fixed place by name.

    `VcpuFd.get_xsave2` makes one; KVM takes at least 4096 bytes, so a shorter one is padded.

    >>> area = Xsave2()
    >>> area.mxcsr = 0x1F80
    >>> area.xstate_bv = 0b11
    >>> area.components()
    ['x87', 'sse']
    >>> len(area), Xsave2.from_bytes(bytes(area)) == area
    (4096, True)
    """

    __slots__ = ()
    SMALLEST = 4096

    def __init__(self, data: Buffer = b"") -> None:
        super().__init__(memoryview(data).cast("B"))
        self.extend(bytes(max(0, self.SMALLEST - len(self))))

    @classmethod
    def from_bytes(cls, data: Buffer) -> Self:
        """Read one from what `bytes(area)` made."""
        return cls(data)

    @classmethod
    def check(cls, data: Buffer) -> None:
        """Raise `StateError` where the bytes are no area in the standard form, which is the one KVM takes."""
        view = memoryview(data).cast("B")
        if not cls.SMALLEST <= len(view) <= _LARGEST:
            raise StateError(f"an XSAVE area has {cls.SMALLEST} to {_LARGEST} bytes, not {len(view)}")
        # Intel SDM volume 1, 13.4.2 and 13.8.1: XCOMP_BV[63] would be the compacted form, and the rest is 0
        if any(view[_LEGACY + 8 : _LEGACY + _HEADER]):
            raise StateError("the header of the XSAVE area is not that of the standard form")

    def padded(self) -> bytearray:
        """Return a copy with zeros behind it, as far as any kernel reads: KVM_SET_XSAVE takes no length.

        Raises `StateError` where it is longer than that.
        """
        if len(self) > _LARGEST:
            raise StateError(f"an XSAVE area has at most {_LARGEST} bytes, not {len(self)}")
        return bytearray(self) + bytes(_LARGEST - len(self))

    def _u(self, code: str, offset: int) -> int:
        value: int = struct.unpack_from(code, self, offset)[0]
        return value

    @property
    def mxcsr(self) -> int:
        """The SSE control and status register."""
        return self._u("<I", _MXCSR)

    @mxcsr.setter
    def mxcsr(self, value: int) -> None:
        struct.pack_into("<I", self, _MXCSR, value)

    @property
    def xstate_bv(self) -> int:
        """Which components the area holds; the others are in their initial state, whatever their bytes say."""
        return self._u("<Q", _LEGACY)

    @xstate_bv.setter
    def xstate_bv(self, value: int) -> None:
        struct.pack_into("<Q", self, _LEGACY, value)

    @property
    def xcomp_bv(self) -> int:
        """0 in the standard form, which is the one KVM uses."""
        return self._u("<Q", _LEGACY + 8)

    def components(self) -> list[str]:
        """Return the names of what the area holds."""
        held = self.xstate_bv
        return [name for bit, name in enumerate(COMPONENTS) if held >> bit & 1]

    def xmm(self, number: int) -> memoryview:
        """Return the 16 bytes of XMM0 to XMM15, to read and to change."""
        return memoryview(self)[_XMM + _XMM_SIZE * range(16)[number] :][:_XMM_SIZE]

    def extended(self) -> memoryview:
        """Return what lies behind the header, where CPUID leaf 0xd says which component starts."""
        return memoryview(self)[_LEGACY + _HEADER :]

    def __repr__(self) -> str:
        return f"<Xsave2 {len(self)} bytes: {' '.join(self.components()) or 'initial state'}, mxcsr={self.mxcsr:#x}>"


class NestedState(Exact, bytearray):
    """The state of a guest hypervisor (struct kvm_nested_state): a header of 128 bytes, and the blocks of VMX or SVM.

    >>> state = NestedState.new(NestedState.SVM)
    >>> state.format, len(state), bool(state.flags & NestedState.GUEST_MODE)
    (1, 128, False)
    """

    __slots__ = ()
    VMX, SVM = 0, 1
    GUEST_MODE, RUN_PENDING, EVMCS, MTF_PENDING, GIF_SET = 1, 2, 4, 8, 256
    HEADER = 128

    @classmethod
    def new(cls, state_format: int, size: int = HEADER) -> Self:
        """Return an empty one of a format, with room for `size` bytes."""
        state = cls(max(size, cls.HEADER))
        struct.pack_into("<HHI", state, 0, 0, state_format, len(state))
        return state

    @classmethod
    def from_bytes(cls, data: Buffer) -> Self:
        """Read one; `StateError` where it is shorter than it says, or than its header."""
        state = cls(memoryview(data).cast("B"))
        # KVM_SET_NESTED_STATE reads the header whatever it is given, and then as much as that says
        if len(state) < cls.HEADER or state.size > len(state):
            raise StateError(f"{len(state)} bytes do not hold the nested state that they announce")
        return state

    @classmethod
    def check(cls, data: Buffer) -> None:
        """Raise `StateError` where the bytes are no such state, whole and of a known format."""
        state = cls.from_bytes(data)
        if state.size != len(state) or state.format not in (cls.VMX, cls.SVM):
            raise StateError(f"it says {state.size} of its {len(state)} bytes, and format {state.format}")

    def _u(self, code: str, offset: int) -> int:
        value: int = struct.unpack_from(code, self, offset)[0]
        return value

    @property
    def flags(self) -> int:
        """Whether the guest's guest runs, and what is pending."""
        return self._u("<H", 0)

    @flags.setter
    def flags(self, value: int) -> None:
        struct.pack_into("<H", self, 0, value)

    @property
    def format(self) -> int:
        """`VMX` or `SVM`."""
        return self._u("<H", 2)

    @property
    def size(self) -> int:
        """How many bytes count."""
        return self._u("<I", 4)

    @property
    def vmcs_or_vmcb(self) -> int:
        """Where the guest hypervisor's control block lies in guest physical memory."""
        return self._u("<Q", 8 if self.format == self.SVM else 16)

    def blocks(self) -> memoryview:
        """Return what lies behind the header."""
        return memoryview(self)[self.HEADER : self.size]

    def __repr__(self) -> str:
        kind = {self.VMX: "VMX", self.SVM: "SVM"}.get(self.format, f"format {self.format}")
        return f"<NestedState {kind} {self.size} bytes, flags={self.flags:#x}>"
