"""A virtual processor: `run()` enters the guest and returns why it came back."""

from __future__ import annotations

import errno
import mmap

from ._arch import ARCH, ArchVcpu
from ._kvm import ffi, lib
from .errors import ClosedError, KvmError
from .exits import Again, Hlt, Intr, IoIn, IoOut, MmioRead, MmioWrite, Shutdown, StringIn, StringOut, Unknown, VcpuExit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from .dirty_ring import DirtyRing
    from .stats import Stats
    from .vm import MemorySlot

_run = lib.pyvmm_run
_NULL = ffi.NULL
_PAYLOAD = lib.PYVMM_RUN_PAYLOAD
_PAYLOAD_SIZE = 256
_IMMEDIATE_EXIT = lib.PYVMM_RUN_IMMEDIATE_EXIT
_MMIO_ADDR_WORD = lib.PYVMM_RUN_PAYLOAD // 8
_MMIO_DATA = lib.PYVMM_RUN_MMIO_DATA
_PIO_PAGE = 4096

# the bytes that native/prelude.h packs exits into
_IO_OUT, _IO_IN, _MMIO_WRITE, _MMIO_READ = 0xFE, 0xFD, 0xFC, 0xFB
_LARGE_REASON = 0xFA


class VcpuFd(ArchVcpu):
    """A vCPU's file descriptor and its run page.

    One thread runs it; every other call waits in the kernel until `run()` returns, so stop it first (`RunControl`).
    """

    __slots__ = (
        "_again",
        "_hlt",
        "_intr",
        "_io_in",
        "_io_out",
        "_mmio_data",
        "_mmio_read",
        "_mmio_write",
        "_page",
        "_pio_data",
        "_run_c",
        "_shutdown",
        "_slots",
        "_state",
        "_words",
        "id",
    )

    def __init__(self, fd: int, run_size: int, vcpu_id: int, slots: dict[int, MemorySlot]) -> None:
        self._state = _NULL
        super().__init__(fd)
        self.id = vcpu_id
        self._slots = slots
        # never unmapped by hand: a view that somebody kept must stay readable, so the last reference unmaps it
        mapped = mmap.mmap(fd, run_size)
        self._page = page = memoryview(mapped)
        self._words = page[: run_size // 8 * 8].cast("Q")
        self._run_c = ffi.from_buffer("struct kvm_run *", mapped)
        self._state = ffi.new("struct pyvmm_vcpu *", {"fd": fd})
        self._pio_data = tuple(page[_PIO_PAGE : _PIO_PAGE + length] for length in range(9))
        self._mmio_data = tuple(page[_MMIO_DATA : _MMIO_DATA + length] for length in range(9))
        self._io_out, self._io_in = IoOut(), IoIn()
        self._mmio_write, self._mmio_read = MmioWrite(), MmioRead()
        self._hlt, self._shutdown, self._intr, self._again = Hlt(), Shutdown(), Intr(), Again()

    def close(self) -> None:
        """Give the vCPU back. `RuntimeError` while another thread is inside `run()`: stop it first."""
        if self._state != _NULL and self._state.running:
            raise RuntimeError(f"vCPU {self.id} is running in another thread: stop it before closing it")
        self._state = _NULL
        super().close()
        self._slots = {}

    def run(self) -> VcpuExit:
        """Enter the guest until it needs us, and say why.

        EINTR comes back as `Intr` and EAGAIN as `Again`, never as exceptions. The exit is valid until the next call.

        Raises:
            KvmError: KVM_RUN failed otherwise; `last_exits` tells what happened before.

        """
        code = _run(self._state, self._run_c)
        kind = code & 0xFF
        if code >= 0:
            if kind == _IO_OUT:
                out = self._io_out
                out.port = code >> 8 & 0xFFFF
                out.data = self._pio_data[code >> 24]
                return out
            if kind == _IO_IN:
                in_ = self._io_in
                in_.port = code >> 8 & 0xFFFF
                in_.data = self._pio_data[code >> 24]
                return in_
            if kind == _MMIO_WRITE:
                write = self._mmio_write
                write.addr = self._words[_MMIO_ADDR_WORD]
                write.data = self._mmio_data[code >> 8]
                return write
            if kind == _MMIO_READ:
                read = self._mmio_read
                read.addr = self._words[_MMIO_ADDR_WORD]
                read.data = self._mmio_data[code >> 8]
                return read
            if kind == Hlt.reason:
                return self._hlt
            return self._rare(kind)
        if code == -errno.EINTR:
            return self._intr
        if code == -errno.EAGAIN:
            return self._again
        if self._fd < 0:
            raise ClosedError("VcpuFd", "KVM_RUN")
        raise KvmError(-code, "KVM_RUN")

    def _rare(self, reason: int) -> VcpuExit:
        if reason == Shutdown.reason:
            return self._shutdown
        if reason == Intr.reason:
            return self._intr
        payload = self._page[_PAYLOAD : _PAYLOAD + _PAYLOAD_SIZE]
        if reason == IoOut.reason:
            return self._string_io(payload)
        if reason == _LARGE_REASON:
            start = lib.PYVMM_RUN_EXIT_REASON
            reason = self._page[start : start + 4].cast("I")[0]
        from .exits_foreign import ArmDebug
        from .exits_rare import BY_REASON

        if reason == ArmDebug.reason and ARCH == "aarch64":
            return ArmDebug.decode(payload)
        kind = BY_REASON.get(reason)
        return kind.decode(payload) if kind else Unknown(reason, bytes(payload))

    def _string_io(self, payload: memoryview) -> VcpuExit:
        import struct

        direction, size, port, count, offset = struct.unpack_from("<BBHIQ", payload)
        if direction > 1 or offset + size * count > len(self._page):
            raise KvmError(
                errno.EINVAL, "KVM_RUN", f"KVM reports port I/O that is not in the run page ({payload[:16].hex()})"
            )
        return (StringOut if direction else StringIn)(port, self._page[offset : offset + size * count], size)

    def set_kvm_immediate_exit(self, value: int) -> None:
        """While it is 1, `run()` finishes pending I/O and returns `Intr` without entering the guest."""
        self._page[_IMMEDIATE_EXIT] = value

    def get_kvm_run(self) -> memoryview:
        """The mapped run page (struct kvm_run) and the pages behind it: a live, writable view of bytes."""
        return self._page

    @property
    def ready_for_interrupt_injection(self) -> bool:
        """Without an in-kernel irqchip: whether `interrupt()` may be called now."""
        return bool(self._page[lib.PYVMM_RUN_READY])

    @property
    def if_flag(self) -> bool:
        """The guest's interrupt flag at the last exit."""
        return bool(self._page[lib.PYVMM_RUN_IF_FLAG])

    @property
    def request_interrupt_window(self) -> bool:
        """Set it to get `IrqWindowOpen` as soon as the guest can take an interrupt."""
        return bool(self._page[lib.PYVMM_RUN_REQUEST_WINDOW])

    @request_interrupt_window.setter
    def request_interrupt_window(self, value: bool) -> None:
        self._page[lib.PYVMM_RUN_REQUEST_WINDOW] = value

    @property
    def exits(self) -> int:
        """How often `run()` came back."""
        return int(self._state.exits) if self._state != _NULL else 0

    @property
    def last_exits(self) -> list[str]:
        """The last 16 exits, oldest first, in words: for reports when something went wrong."""
        from .report import describe_exits

        return describe_exits(self._state) if self._state != _NULL else []

    def enable_cap(self, cap: int, *args: int, flags: int = 0) -> int:
        """Switch a capability on for this vCPU."""
        return self._ioctl("KVM_ENABLE_CAP", ffi.new("struct kvm_enable_cap *", (cap, flags, args)))

    def get_one_reg(self, register: int) -> int:
        """One register by its 64-bit id, whose bits 52 to 55 say how wide it is."""
        value = bytearray(reg_size(register))
        with ffi.from_buffer("char[]", value) as data:
            address = int(ffi.cast("unsigned long", data))
            self._ioctl("KVM_GET_ONE_REG", ffi.new("struct kvm_one_reg *", (register, address)))
        return int.from_bytes(value, "little")

    def set_one_reg(self, register: int, value: int) -> None:
        """Write one register by its id."""
        with ffi.from_buffer("char[]", value.to_bytes(reg_size(register), "little")) as data:
            address = int(ffi.cast("unsigned long", data))
            self._ioctl("KVM_SET_ONE_REG", ffi.new("struct kvm_one_reg *", (register, address)))

    def get_reg_list(self) -> list[int]:
        """The ids that `get_one_reg` knows."""
        import struct

        buffer = bytearray(8)
        try:
            with ffi.from_buffer("char[]", buffer) as argument:
                self._ioctl("KVM_GET_REG_LIST", argument)
        except KvmError as error:
            # the kernel writes the number that it needs
            if error.errno != errno.E2BIG:
                raise
            buffer += bytes(8 * struct.unpack("<Q", buffer)[0])
            with ffi.from_buffer("char[]", buffer) as argument:
                self._ioctl("KVM_GET_REG_LIST", argument)
        return list(struct.unpack_from(f"<{struct.unpack_from('<Q', buffer)[0]}Q", buffer, 8))

    def set_signal_mask(self, blocked: Iterable[int] | None) -> None:
        """The signals that are blocked inside KVM_RUN only; None means the thread's own mask. `RunControl` uses it."""
        if blocked is None:
            self._ioctl("KVM_SET_SIGNAL_MASK")
            return
        bits = sum(1 << number - 1 for number in set(blocked))
        argument = bytearray((8).to_bytes(4, "little") + bits.to_bytes(8, "little"))
        with ffi.from_buffer("char[]", argument) as data:
            self._ioctl("KVM_SET_SIGNAL_MASK", data)

    def get_stats_fd(self) -> Stats:
        """The vCPU's counters, by name."""
        from .stats import Stats

        return Stats(self._ioctl_value("KVM_GET_STATS_FD", 0))

    def pre_fault_memory(self, gpa: int, size: int) -> int:
        """Populate the guest's page tables for a range; the answer is how many bytes are left when interrupted."""
        request = ffi.new("struct kvm_pre_fault_memory *", (gpa, size))
        self._ioctl("KVM_PRE_FAULT_MEMORY", request)
        return int(request.size)

    def dirty_ring(self, size: int) -> DirtyRing:
        """This vCPU's ring of written pages; `size` in bytes as given to KVM_CAP_DIRTY_LOG_RING."""
        from .dirty_ring import DirtyRing

        return DirtyRing(self.fileno(), size)

    def coalesced_mmio_read(self) -> tuple[int, bytes, bool] | None:
        """The next write that the kernel collected, as (address, data, is_port), or None when there is none."""
        from .coalesced import read_next

        return read_next(self._page)

    def __repr__(self) -> str:
        return f"<VcpuFd {self.id} {'closed' if self._fd < 0 else f'fd={self._fd}, {self.exits} exits'}>"


def reg_size(register: int) -> int:
    """How many bytes a register of this id has.

    >>> reg_size(0x2030_0002_0000_0000)
    8
    """
    return 1 << (register >> 52 & 0xF)
