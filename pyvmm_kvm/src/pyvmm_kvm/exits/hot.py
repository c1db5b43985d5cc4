"""Why a vCPU came back from the guest: one class per exit reason, made for `match`.

An exit describes the vCPU until its next `run()`. `data` is a live, writable view into the page that KVM shares with
us: for `IoIn` and `MmioRead` write the answer into it before the next `run()`, and copy what must last (`bytes(data)`).
A vCPU hands out the same object whenever the same thing happens, so do not assign to its attributes.

In a loop that handles 100 000 exits a second, `type(exit) is IoOut` with `exit.port` costs 0.1 us, and the pattern
`case IoOut(port, data):` 0.5 us, for CPython makes a set, a list and a tuple for it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar


PAYLOAD_SIZE = 256  # bytes of the union in struct kvm_run


class VcpuExit:
    """Any exit. `reason` is its KVM_EXIT_* number, or -1 for the two that are an errno of KVM_RUN."""

    __slots__ = ()
    __match_args__: ClassVar[tuple[str, ...]] = ()
    reason: ClassVar[int] = -1

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={_show(getattr(self, name))}" for name in self.__match_args__)
        return f"{type(self).__name__}({fields})"


def _show(value: object) -> str:
    if isinstance(value, int):
        return format(value, "#x")
    if isinstance(value, (memoryview, bytes)):
        return f"<{bytes(value).hex(' ')}>"
    if isinstance(value, tuple):
        return f"({', '.join(_show(item) for item in value)})"
    return repr(value)


class _Io(VcpuExit):
    __slots__ = ("data", "port")
    port: int
    data: memoryview
    reason = 2

    def __init__(self, port: int = 0, data: memoryview = memoryview(b"")) -> None:  # noqa: B008 - immutable
        self.port = port
        self.data = data

    @property
    def size(self) -> int:
        """The bytes of one access: those of `data`, or fewer where a string instruction made several at once."""
        return len(self.data)


class IoOut(_Io):
    """The guest wrote `data` to a port; string instructions deliver several items of `size` bytes at once."""

    __slots__ = ()
    # on the class itself: `match` looks the name up without the type's cache, base by base
    __match_args__ = ("port", "data")


class IoIn(_Io):
    """The guest reads a port: write the answer into `data`, all of it, in items of `size` bytes."""

    __slots__ = ()
    # on the class itself: `match` looks the name up without the type's cache, base by base
    __match_args__ = ("port", "data")


class StringOut(IoOut):
    """An `IoOut` of a string instruction (``rep outsb``)."""

    __slots__ = ("size",)
    size: int

    def __init__(self, port: int, data: memoryview, size: int) -> None:
        super().__init__(port, data)
        self.size = size


class StringIn(IoIn):
    """An `IoIn` of a string instruction (``rep insb``)."""

    __slots__ = ("size",)
    size: int

    def __init__(self, port: int, data: memoryview, size: int) -> None:
        super().__init__(port, data)
        self.size = size


class _Mmio(VcpuExit):
    __slots__ = ("addr", "data")
    addr: int
    data: memoryview
    reason = 6

    def __init__(self, addr: int = 0, data: memoryview = memoryview(b"")) -> None:  # noqa: B008 - immutable
        self.addr = addr
        self.data = data


class MmioRead(_Mmio):
    """The guest reads 1 to 8 bytes at a guest physical address without memory: write the answer into `data`."""

    __slots__ = ()
    # on the class itself: `match` looks the name up without the type's cache, base by base
    __match_args__ = ("addr", "data")


class MmioWrite(_Mmio):
    """The guest wrote 1 to 8 bytes to a guest physical address without memory."""

    __slots__ = ()
    # on the class itself: `match` looks the name up without the type's cache, base by base
    __match_args__ = ("addr", "data")


class Hlt(VcpuExit):
    """The guest halted; only seen without an in-kernel irqchip."""

    __slots__ = ()
    reason = 5


class Shutdown(VcpuExit):
    """A triple fault or another processor shutdown. On AMD hosts KVM has reset the vCPU: its registers are lost."""

    __slots__ = ()
    reason = 8


class Intr(VcpuExit):
    """KVM_RUN returned EINTR: a kick, `set_kvm_immediate_exit(1)` or a signal. Pending I/O is complete; run again."""

    __slots__ = ()
    reason = 10


class Again(VcpuExit):
    """KVM_RUN returned EAGAIN: a vCPU that waited for INIT and SIPI may now start. Run again."""

    __slots__ = ()


class Unknown(VcpuExit):
    """A reason this package has no class for, or KVM_EXIT_UNKNOWN itself.

    `number` is the exit reason and `raw` a copy of the `PAYLOAD_SIZE` bytes of its payload.
    """

    __slots__ = ("number", "raw")
    __match_args__ = ("number", "raw")

    def __init__(self, number: int, raw: bytes) -> None:
        self.number = number
        self.raw = raw

    @property
    def hardware_exit_reason(self) -> int:
        """For number 0: what the processor said."""
        return int.from_bytes(self.raw[:8], "little")

    def __repr__(self) -> str:
        return f"Unknown({self.number}, {self.raw[:32].hex(' ')}...)"
