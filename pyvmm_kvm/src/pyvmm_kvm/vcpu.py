"""A vCPU: its registers, the page it shares with the kernel, and the call that runs it."""

from __future__ import annotations

import errno
import mmap
from struct import Struct

from pyvmm_kvm._kvm import lib
from pyvmm_kvm.errors import ClosedError, KvmError
from pyvmm_kvm.exits import (
    Again,
    FailEntry,
    Hlt,
    InternalError,
    Intr,
    IoIn,
    IoOut,
    IrqWindowOpen,
    MmioRead,
    MmioWrite,
    Shutdown,
    SystemEvent,
    Unknown,
)
from pyvmm_kvm.fd import KvmFileDescriptor
from pyvmm_kvm.x86_64.registers import Regs, Sregs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from pyvmm_kvm.exits import Exit
    from pyvmm_kvm.x86_64.cpuid import CpuId

# The payloads of struct kvm_run, from the offset that the compiler told us.
_PAYLOAD = lib.PYVMM_RUN_PAYLOAD
_IO = Struct("<BBHIQ")  # direction, size, port, count, data_offset
_MMIO = Struct("<Q8sIB")  # phys_addr, data, len, is_write
_MMIO_DATA = _PAYLOAD + 8
_INTERNAL = Struct("<II16Q")  # suberror, ndata, data
_SYSTEM_EVENT = Struct("<II16Q")  # type, ndata, data
_FAIL_ENTRY = Struct("<QI")  # hardware_entry_failure_reason, cpu
_UNKNOWN_SIZE = 256

_EXIT_IO, _EXIT_MMIO, _IO_OUT = lib.KVM_EXIT_IO, lib.KVM_EXIT_MMIO, lib.KVM_EXIT_IO_OUT
_INTR, _AGAIN = Intr(), Again()
_BARE: dict[int, Exit] = {
    lib.KVM_EXIT_HLT: Hlt(),
    lib.KVM_EXIT_INTR: _INTR,
    lib.KVM_EXIT_IRQ_WINDOW_OPEN: IrqWindowOpen(),
    lib.KVM_EXIT_SHUTDOWN: Shutdown(),
}

_MSRS_HEADER = Struct("<II")  # nmsrs, pad
_MSR_ENTRY = Struct("<IIQ")  # index, reserved, data
_MP_STATE = Struct("<I")


class VcpuFd(KvmFileDescriptor):
    """A virtual processor (kernel document virt/kvm/api, "vCPU ioctls"); made by `VmFd.create_vcpu`.

    Only the thread that runs it should call it while it runs: the kernel makes every other caller wait.
    """

    __slots__ = ("_page", "_reason", "_view", "id")

    def __init__(self, fd: int, run_size: int, vcpu_id: int) -> None:
        super().__init__(fd)
        self.id = vcpu_id
        self._page = mmap.mmap(fd, run_size, mmap.MAP_SHARED, mmap.PROT_READ | mmap.PROT_WRITE)
        self._view = memoryview(self._page)
        self._reason = self._view[: run_size & ~3].cast("I")

    def close(self) -> None:
        """Unmap the shared page and close; every exit's ``data`` is released with it or keeps the page mapped."""
        if self._fd >= 0:
            self._reason.release()
            self._view.release()
            try:
                self._page.close()
            except BufferError:
                # somebody still holds an exit's data: the page goes when that does
                del self._page
        super().close()

    def run(self) -> Exit:
        """KVM_RUN: let the guest go on until something needs us.

        Returns:
            Why it came back. `Intr` after a signal or with ``immediate_exit``, `Again` on EAGAIN: both are normal.

        Raises:
            KvmError: the kernel refused.
            ClosedError: the vCPU has been closed.
        """
        fd = self._fd
        if fd < 0:
            raise ClosedError("VcpuFd is closed")
        result = lib.pyvmm_run(fd)
        if result:
            if result == -errno.EINTR:
                return _INTR
            if result == -errno.EAGAIN:
                return _AGAIN
            raise KvmError("KVM_RUN", -result)
        reason = self._reason[_REASON]
        view = self._view
        if reason == _EXIT_IO:
            direction, size, port, count, offset = _IO.unpack_from(view, _PAYLOAD)
            kind = IoOut if direction == _IO_OUT else IoIn
            return kind(port, view[offset : offset + size * count], size)
        if reason == _EXIT_MMIO:
            address, _, length, is_write = _MMIO.unpack_from(view, _PAYLOAD)
            data = view[_MMIO_DATA : _MMIO_DATA + min(length, 8)]
            return MmioWrite(address, data) if is_write else MmioRead(address, data)
        return _BARE.get(reason) or self._decode_rare(reason)

    def _decode_rare(self, reason: int) -> Exit:
        view = self._view
        if reason == lib.KVM_EXIT_INTERNAL_ERROR:
            suberror, count, *data = _INTERNAL.unpack_from(view, _PAYLOAD)
            return InternalError(suberror, tuple(data[: min(count, 16)]))
        if reason == lib.KVM_EXIT_SYSTEM_EVENT:
            kind, count, *data = _SYSTEM_EVENT.unpack_from(view, _PAYLOAD)
            return SystemEvent(kind, tuple(data[: min(count, 16)]))
        if reason == lib.KVM_EXIT_FAIL_ENTRY:
            return FailEntry(*_FAIL_ENTRY.unpack_from(view, _PAYLOAD))
        return Unknown(reason, bytes(view[_PAYLOAD : _PAYLOAD + _UNKNOWN_SIZE]))

    def set_kvm_immediate_exit(self, value: int) -> None:
        """Write ``immediate_exit``: while it is 1, `run` completes pending input or output and returns `Intr`.

        Raises:
            ClosedError: the vCPU has been closed.
        """
        if self._fd < 0:
            raise ClosedError("VcpuFd is closed")
        self._view[lib.PYVMM_RUN_IMMEDIATE_EXIT] = value

    def get_regs(self) -> Regs:
        """KVM_GET_REGS: the general registers, RIP and RFLAGS."""
        raw = bytearray(Regs.size)
        self._call_with("KVM_GET_REGS", raw)
        return Regs.unpack(raw)

    def set_regs(self, regs: Regs) -> None:
        """KVM_SET_REGS."""
        self._call_with("KVM_SET_REGS", regs.pack())

    def get_sregs(self) -> Sregs:
        """KVM_GET_SREGS: segments, descriptor tables, control registers."""
        raw = bytearray(Sregs.size)
        self._call_with("KVM_GET_SREGS", raw)
        return Sregs.unpack(raw)

    def set_sregs(self, sregs: Sregs) -> None:
        """KVM_SET_SREGS."""
        self._call_with("KVM_SET_SREGS", sregs.pack())

    def set_cpuid2(self, cpuid: CpuId) -> None:
        """KVM_SET_CPUID2: what the guest's CPUID instruction answers; before the first run."""
        self._call_with("KVM_SET_CPUID2", cpuid.pack())

    def get_cpuid2(self, num_entries: int) -> CpuId:
        """KVM_GET_CPUID2: what was set, as the kernel keeps it."""
        from pyvmm_kvm.x86_64.cpuid import CpuId

        table = CpuId.reserve(num_entries)
        self._call_with("KVM_GET_CPUID2", table)
        return CpuId.unpack(table)

    def get_msrs(self, indexes: Iterable[int]) -> dict[int, int]:
        """KVM_GET_MSRS: the values of model specific registers.

        Raises:
            KvmError: the kernel stopped at an MSR; the message names it.
        """
        wanted = list(indexes)
        table = self._msrs("KVM_GET_MSRS", dict.fromkeys(wanted, 0))
        return {index: value for index, _, value in _MSR_ENTRY.iter_unpack(table[_MSRS_HEADER.size :])}

    def set_msrs(self, values: Mapping[int, int]) -> None:
        """KVM_SET_MSRS.

        Raises:
            KvmError: the kernel stopped at an MSR; the message names it, those before it are set.
        """
        self._msrs("KVM_SET_MSRS", values)

    def _msrs(self, call: str, values: Mapping[int, int]) -> bytearray:
        entries = (_MSR_ENTRY.pack(index, 0, value) for index, value in values.items())
        table = bytearray(_MSRS_HEADER.pack(len(values), 0) + b"".join(entries))
        done = self._call_with(call, table)
        if done < len(values):
            # a short count is how the kernel says which MSR it refused
            raise KvmError(call, errno.EINVAL, f"the kernel refused MSR {list(values)[done]:#x}")
        return table

    def get_mp_state(self) -> int:
        """KVM_GET_MP_STATE: running, waiting for INIT or SIPI, or halted, as ``KVM_MP_STATE_*``."""
        raw = bytearray(_MP_STATE.size)
        self._call_with("KVM_GET_MP_STATE", raw)
        state: int = _MP_STATE.unpack(raw)[0]
        return state

    def set_mp_state(self, state: int) -> None:
        """KVM_SET_MP_STATE."""
        self._call_with("KVM_SET_MP_STATE", _MP_STATE.pack(state))

    def is_halted_for_good(self) -> bool:
        """Whether the vCPU sits in HLT with interrupts off, which is how a kernel without power control stops."""
        interrupts_enabled = 1 << 9
        return self.get_mp_state() == lib.KVM_MP_STATE_HALTED and not self.get_regs().rflags & interrupts_enabled

    def __repr__(self) -> str:
        return f"<VcpuFd {self.id} {'closed' if self._fd < 0 else f'fd={self._fd}'}>"


_REASON = lib.PYVMM_RUN_EXIT_REASON // 4


def ignore_signal(number: int) -> None:
    """Give a signal a handler that does nothing, so that its only effect is to interrupt KVM_RUN.

    For applications to call once, before they kick a vCPU: no module does it by being imported. A handler set with
    Python's ``signal`` would do too, but wakes the main thread each time.

    Raises:
        KvmError: there is no such signal.
    """
    result = lib.pyvmm_ignore_signal(number)
    if result < 0:
        raise KvmError("sigaction", -result)
