"""A virtual processor: `run()` enters the guest and returns why it came back."""

from __future__ import annotations

import errno
import mmap
import struct

from pyvmm_kvm._arch import ARCH, ArchVcpu
from pyvmm_kvm._kvm import ffi, lib
from pyvmm_kvm.desk import Desk
from pyvmm_kvm.device_attrs import DeviceAttrs
from pyvmm_kvm.errors import BusyError, ClosedError, KvmError
from pyvmm_kvm.exits.hot import (
    PAYLOAD_SIZE,
    Again,
    Hlt,
    Intr,
    IoOut,
    MmioRead,
    MmioWrite,
    Shutdown,
    StringIn,
    StringOut,
    Unknown,
    VcpuExit,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyvmm_kvm._kvm import CData
    from pyvmm_kvm.dirty_ring import DirtyRing
    from pyvmm_kvm.memory_slot import MemorySlot
    from pyvmm_kvm.mp_state import MpState
    from pyvmm_kvm.one_reg import RegList
    from pyvmm_kvm.stats import Stats

_run = lib.pyvmm_run
_NULL = ffi.NULL
_PAYLOAD = lib.PYVMM_RUN_PAYLOAD
_IMMEDIATE_EXIT = lib.PYVMM_RUN_IMMEDIATE_EXIT
_MMIO_DATA = lib.PYVMM_RUN_MMIO_DATA
_BUSY, _TURN = lib.PYVMM_BUSY, lib.PYVMM_TURN
_LENGTH, _DESK, _UNKNOWN = lib.PYVMM_LENGTH_SHIFT, lib.PYVMM_DESK_SHIFT, 1 << lib.PYVMM_UNKNOWN_SHIFT
_IO_IN, _IO_OUT = 0, 1  # KVM_EXIT_IO_*
_MMIO_MOST = 8
# what the kernel answers without waiting for the vCPU (kvm_arch_vcpu_async_ioctl)
_AT_ANY_TIME = frozenset({"KVM_INTERRUPT"} if ARCH == "riscv64" else ())


class VcpuFd(ArchVcpu, DeviceAttrs):
    """A vCPU's file descriptor and its run page.

    One thread runs it, and while it does, every other call raises `BusyError`: stop it first (`RunControl`). The kernel
    would let such a call wait until `run()` returns, which may be never.
    """

    # `_known` has the exits that were handed out, by what `pyvmm_run` returns, `_desks` the bytes of those with data.
    # `_unanswered` is what a rarer exit asked: where that lies in the run page, its bytes as the VMM sees them, and as
    # they were; while there is such a question, the `waits` of `_state` sends `run` to `_turn`.
    __slots__ = ("_address", "_desks", "_known", "_run_c", "_slots", "_state", "_unanswered", "id", "run_page")

    def __init__(self, fd: int, run_size: int, vcpu_id: int, slots: dict[int, MemorySlot]) -> None:
        self._address = 0
        self._state = _NULL
        super().__init__(fd)
        self.id = vcpu_id
        self._slots = slots
        # never unmapped by hand: a view that somebody kept must stay readable, so the last reference unmaps it
        mapped = mmap.mmap(fd, run_size)
        self.run_page = memoryview(mapped)
        self._run_c = ffi.from_buffer("struct kvm_run *", mapped)
        # freed with this object and not before: another thread may be inside run() with its address
        self._state = ffi.new("struct pyvmm_vcpu *", {"fd": fd, "run": self._run_c})
        self._desks = [Desk(), Desk()]
        self._state.desks = [desk.cdata for desk in self._desks]
        self._address = int(ffi.cast("unsigned long", self._state))
        self._known: dict[int, VcpuExit] = {
            Hlt.reason << _LENGTH: Hlt(),
            Shutdown.reason << _LENGTH: Shutdown(),
            Intr.reason << _LENGTH: Intr(),
            -errno.EINTR: Intr(),
            -errno.EAGAIN: Again(),
        }
        self._unanswered: tuple[int, bytearray, bytes] | None = None

    def ioctl(self, name: str, argument: CData = _NULL) -> int:
        """Do as `Fd.ioctl`; `BusyError` while another thread is inside `run()`."""
        if name in _AT_ANY_TIME or self.closed:
            return super().ioctl(name, argument)
        return self._checked(name, lib.pyvmm_vcpu_ioctl(self._state, getattr(lib, name), argument))

    def ioctl_value(self, name: str, value: int = 0) -> int:
        """Do as `Fd.ioctl_value`; `BusyError` while another thread is inside `run()`."""
        if self.closed:
            return super().ioctl_value(name, value)
        return self._checked(name, lib.pyvmm_vcpu_ioctl_value(self._state, getattr(lib, name), value))

    def _checked(self, name: str, result: int) -> int:
        """Return a result that is none of an error, and raise what it says otherwise."""
        if result >= 0:
            return result
        if self.closed:
            raise ClosedError("VcpuFd", name)
        # who closes looks for who runs, and seems to be done for that moment
        if result in (-_BUSY, -errno.EBADF):
            raise BusyError(self.id, name)
        raise KvmError(-result, name)

    def close(self) -> None:
        """Give the vCPU back. `BusyError` while another thread is inside `run()`: stop it first."""
        if self._state != _NULL and lib.pyvmm_close(self._state):
            raise BusyError(self.id, "close")
        super().close()
        self._slots = {}

    def run(self) -> VcpuExit:
        """Enter the guest until it needs us, and say why.

        EINTR comes back as `Intr` and EAGAIN as `Again`, never as exceptions. The exit stays what it is for as long as
        somebody keeps it; what it asks is answered before the next call.

        Raises:
            BusyError: another thread is inside this method.
            KvmError: KVM_RUN failed otherwise; `last_exits` tells what happened before.

        """
        code = _run(self._address)
        # cheaper than dict.get for what happened before, and nearly everything did
        try:
            return self._known[code]
        except KeyError:
            pass
        # out here, or an error would seem to have come from the KeyError
        return self._decode(code)

    def _decode(self, code: int) -> VcpuExit:
        """Make an exit that did not happen before; those of port and memory-mapped I/O are kept for the next time."""
        if code == -_TURN:
            self._turn()
            return self.run()
        if code < 0:
            self._checked("KVM_RUN", code)
        code &= ~_UNKNOWN
        return self._desks[code >> _DESK].learn(code, self._known) or self._rare(code >> _LENGTH)

    def _turn(self) -> None:
        """Do what comes before the next run: take a rarer exit's answer, or lay a desk aside that somebody keeps."""
        if self._unanswered is not None:
            start, given, before = self._unanswered
            self._unanswered = None
            # what nobody changed is not written: an answer may have been written into the run page itself
            if given != before:
                self.run_page[start : start + len(before)] = given
            self._state.waits = 0
            return
        new = Desk()
        if (place := lib.pyvmm_swap(self._state, new.cdata)) < 0:
            raise BusyError(self.id, "KVM_RUN")
        old, self._desks[place] = self._desks[place], new
        old.forget(self._known)

    def _rare(self, reason: int) -> VcpuExit:
        payload = self._ask(_PAYLOAD, PAYLOAD_SIZE)
        if reason == IoOut.reason:
            return self._string_io(payload)
        if reason == MmioRead.reason:
            return self._wide_mmio(payload)
        from pyvmm_kvm.exits.rare import BY_REASON

        kind = BY_REASON.get(reason)
        return kind.decode(payload) if kind else Unknown(reason, bytes(payload))

    def _ask(self, start: int, length: int) -> memoryview:
        """Return a copy of some of the run page, in which the VMM answers: the next `run` takes what was changed."""
        before = bytes(self.run_page[start : start + length])
        own = bytearray(before)
        self._unanswered = start, own, before
        self._state.waits = 1
        return memoryview(own)

    def _string_io(self, payload: memoryview) -> VcpuExit:
        direction, size, port, count, offset = struct.unpack_from("<BBHIQ", payload)
        if direction not in (_IO_IN, _IO_OUT) or offset + size * count > len(self.run_page):
            raise KvmError(
                errno.EINVAL, "KVM_RUN", f"KVM reports port I/O that is not in the run page ({payload[:16].hex()})"
            )
        data = self._ask(offset, size * count)
        return StringIn(port, data, size) if direction == _IO_IN else StringOut(port, data, size)

    def _wide_mmio(self, payload: memoryview) -> VcpuExit:
        # the kernel's word for more than 8 bytes would be a defect, and the array ends there
        addr, length, is_write = struct.unpack_from("<Q8xIB", payload)
        data = self._ask(_MMIO_DATA, min(length, _MMIO_MOST))
        return MmioWrite(addr, data) if is_write else MmioRead(addr, data)

    def set_kvm_immediate_exit(self, value: int) -> None:
        """Let `run()`, while it is 1, finish pending I/O and return `Intr` without entering the guest."""
        self.run_page[_IMMEDIATE_EXIT] = value

    def get_kvm_run(self) -> memoryview:
        """Return the mapped run page (struct kvm_run) and the pages behind it: a live, writable view of bytes."""
        return self.run_page

    @property
    def ready_for_interrupt_injection(self) -> bool:
        """Without an in-kernel irqchip: whether `interrupt()` may be called now."""
        return bool(self.run_page[lib.PYVMM_RUN_READY])

    @property
    def if_flag(self) -> bool:
        """The guest's interrupt flag at the last exit."""
        return bool(self.run_page[lib.PYVMM_RUN_IF_FLAG])

    @property
    def request_interrupt_window(self) -> bool:
        """Set it to get `IrqWindowOpen` as soon as the guest can take an interrupt."""
        return bool(self.run_page[lib.PYVMM_RUN_REQUEST_WINDOW])

    @request_interrupt_window.setter
    def request_interrupt_window(self, value: bool) -> None:
        self.run_page[lib.PYVMM_RUN_REQUEST_WINDOW] = value

    @property
    def cr8(self) -> int:
        """Without an in-kernel irqchip: the task priority at the last exit, and with which the next run begins."""
        return self.run_page[lib.PYVMM_RUN_CR8 : lib.PYVMM_RUN_CR8 + 8].cast("Q")[0]

    @cr8.setter
    def cr8(self, value: int) -> None:
        self.run_page[lib.PYVMM_RUN_CR8 : lib.PYVMM_RUN_CR8 + 8].cast("Q")[0] = value

    @property
    def apic_base(self) -> int:
        """The APIC's base register at the last exit (IA32_APIC_BASE)."""
        return self.run_page[lib.PYVMM_RUN_APIC_BASE : lib.PYVMM_RUN_APIC_BASE + 8].cast("Q")[0]

    @property
    def exits(self) -> int:
        """How often `run()` came back."""
        return int(self._state.exits) if self._state != _NULL else 0

    @property
    def last_exits(self) -> list[str]:
        """The last 16 exits, oldest first, in words: for reports when something went wrong."""
        from pyvmm_kvm.report import describe_exits

        return describe_exits(self._state) if self._state != _NULL else []

    def enable_cap(self, cap: int, *args: int, flags: int = 0) -> int:
        """Switch a capability on for this vCPU."""
        return self.ioctl("KVM_ENABLE_CAP", ffi.new("struct kvm_enable_cap *", (cap, flags, args)))

    def get_mp_state(self) -> MpState:
        """Say whether it runs, halts or waits for INIT and SIPI (arm64: for PSCI, RISC-V: for the SBI)."""
        from pyvmm_kvm.mp_state import MpState

        return self.get_struct("KVM_GET_MP_STATE", MpState)

    def set_mp_state(self, state: MpState | int) -> None:
        """Change that; a plain number such as `MpState.RUNNABLE` will do."""
        from pyvmm_kvm.mp_state import MpState

        self.set_struct("KVM_SET_MP_STATE", MpState, MpState(mp_state=state) if isinstance(state, int) else state)

    def get_one_reg(self, register: int) -> int:
        """Read one register by its 64-bit id, whose bits 52 to 55 say how wide it is (`registers` modules make ids)."""
        from pyvmm_kvm.one_reg import get_one_reg

        return get_one_reg(self, register)

    def set_one_reg(self, register: int, value: int) -> None:
        """Write one register by its id."""
        from pyvmm_kvm.one_reg import set_one_reg

        set_one_reg(self, register, value)

    def get_reg_list(self) -> RegList:
        """Return the ids that `get_one_reg` knows."""
        from pyvmm_kvm.one_reg import get_reg_list

        return get_reg_list(self)

    def set_signal_mask(self, blocked: Iterable[int] | None) -> None:
        """Set the signals blocked inside KVM_RUN only; None means the thread's own mask. `RunControl` uses it."""
        if blocked is None:
            self.ioctl("KVM_SET_SIGNAL_MASK")
            return
        bits = sum(1 << number - 1 for number in set(blocked))
        argument = bytearray((8).to_bytes(4, "little") + bits.to_bytes(8, "little"))
        with ffi.from_buffer("char[]", argument) as data:
            self.ioctl("KVM_SET_SIGNAL_MASK", data)

    def get_stats_fd(self) -> Stats:
        """Return the vCPU's counters, by name."""
        from pyvmm_kvm.stats import Stats

        return Stats(self.ioctl_value("KVM_GET_STATS_FD"))

    def pre_fault_memory(self, gpa: int, size: int) -> int:
        """Populate the guest's page tables for a range; return how many bytes are left when interrupted."""
        request = ffi.new("struct kvm_pre_fault_memory *", (gpa, size))
        self.ioctl("KVM_PRE_FAULT_MEMORY", request)
        return int(request.size)

    def dirty_ring(self, size: int) -> DirtyRing:
        """Return this vCPU's ring of written pages; `size` in bytes as given to KVM_CAP_DIRTY_LOG_RING."""
        from pyvmm_kvm.dirty_ring import DirtyRing

        return DirtyRing(self.fileno(), size)

    def coalesced_mmio_read(self) -> tuple[int, bytes, bool] | None:
        """Take the next write that the kernel collected, as (address, data, is_port), or None when there is none."""
        from pyvmm_kvm.coalesced import read_next

        return read_next(self.run_page)

    def __repr__(self) -> str:
        return f"<VcpuFd {self.id} {'closed' if self.closed else f'fd={self.fileno()}, {self.exits} exits'}>"
