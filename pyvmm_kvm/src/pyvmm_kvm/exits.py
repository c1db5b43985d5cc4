"""Why a vCPU came back to us: one class for each ``KVM_EXIT_*``, made for ``match``.

The ``data`` of an access is a live view into the run page that the vCPU shares with the kernel: for a read, what is
put there before the next `VcpuFd.run` is what the guest reads; for a write, it is valid until then.
"""

from __future__ import annotations

_INTERNAL_ERRORS = {
    1: "KVM could not emulate an instruction",
    2: "two exceptions at once while delivering an event",
    3: "an event could not be delivered",
    4: "an exit that KVM does not know",
}


class Exit:
    """Any reason."""

    __slots__ = ()
    __match_args__: tuple[str, ...] = ()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({', '.join(_show(getattr(self, name)) for name in self.__match_args__)})"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other) and all(
            getattr(self, name) == getattr(other, name) for name in self.__match_args__
        )

    __hash__ = None  # type: ignore[assignment]  # the data of an exit changes under it


def _show(value: object) -> str:
    if isinstance(value, memoryview):
        return f"{len(value)} bytes {value.hex(' ')}"
    return f"{value:#x}" if isinstance(value, int) else repr(value)


class _PortAccess(Exit):
    __slots__ = ("data", "port", "size")
    __match_args__ = ("port", "data")

    def __init__(self, port: int, data: memoryview, size: int) -> None:
        self.port = port
        self.data = data
        self.size = size


class IoIn(_PortAccess):
    """KVM_EXIT_IO, a read: fill ``data`` with what port ``port`` answers.

    ``size`` is the width of one access; string instructions make ``data`` several of them.
    """

    __slots__ = ()


class IoOut(_PortAccess):
    """KVM_EXIT_IO, a write of ``data`` to port ``port``; ``size`` as in `IoIn`."""

    __slots__ = ()


class _MmioAccess(Exit):
    __slots__ = ("address", "data")
    __match_args__ = ("address", "data")

    def __init__(self, address: int, data: memoryview) -> None:
        self.address = address
        self.data = data


class MmioRead(_MmioAccess):
    """KVM_EXIT_MMIO, a read of 1 to 8 bytes where the guest has no memory: fill ``data``."""

    __slots__ = ()


class MmioWrite(_MmioAccess):
    """KVM_EXIT_MMIO, a write of 1 to 8 bytes where the guest has no memory."""

    __slots__ = ()


class Hlt(Exit):
    """KVM_EXIT_HLT: the guest halted; only without an interrupt controller in the kernel."""

    __slots__ = ()


class Intr(Exit):
    """The run was interrupted: by a signal (EINTR), or by ``immediate_exit``."""

    __slots__ = ()


class Again(Exit):
    """EAGAIN: the vCPU is not runnable yet, or has just become so; run it again."""

    __slots__ = ()


class IrqWindowOpen(Exit):
    """KVM_EXIT_IRQ_WINDOW_OPEN: the guest can take the interrupt it was asked about."""

    __slots__ = ()


class Shutdown(Exit):
    """KVM_EXIT_SHUTDOWN: a triple fault."""

    __slots__ = ()


class FailEntry(Exit):
    """KVM_EXIT_FAIL_ENTRY: the processor refused the guest's state.

    ``reason`` is the hardware's own code, ``cpu`` the host CPU it happened on.
    """

    __slots__ = ("cpu", "reason")
    __match_args__ = ("reason", "cpu")

    def __init__(self, reason: int, cpu: int) -> None:
        self.reason = reason
        self.cpu = cpu


class InternalError(Exit):
    """KVM_EXIT_INTERNAL_ERROR: KVM gave up.

    ``suberror`` 1 is an instruction that its emulator does not know; ``data`` is what KVM had to say, as numbers.
    """

    __slots__ = ("data", "suberror")
    __match_args__ = ("suberror", "data")

    def __init__(self, suberror: int, data: tuple[int, ...]) -> None:
        self.suberror = suberror
        self.data = data

    @property
    def meaning(self) -> str:
        """The suberror in words."""
        return _INTERNAL_ERRORS.get(self.suberror, "unknown")

    @property
    def instruction(self) -> bytes:
        """The bytes of the instruction that could not be emulated; empty where KVM did not say.

        From ``struct kvm_run``: ``emulation_failure`` holds flags, then a size and up to 15 bytes where bit 0 of
        flags is set.
        """
        if self.suberror != 1 or len(self.data) < 3 or not self.data[0] & 1:
            return b""
        raw = b"".join(word.to_bytes(8, "little") for word in self.data[1:])
        return raw[1 : 1 + min(raw[0], 15)]


class SystemEvent(Exit):
    """KVM_EXIT_SYSTEM_EVENT: shutdown (1), reset (2) or crash (3), as the guest's firmware interface asked."""

    __slots__ = ("data", "type")
    __match_args__ = ("type", "data")

    def __init__(self, type: int, data: tuple[int, ...]) -> None:  # noqa: A002 (the field's name)
        self.type = type
        self.data = data


class Unknown(Exit):
    """An exit this package has no name for: its number, and the raw bytes of its payload."""

    __slots__ = ("number", "raw")
    __match_args__ = ("number", "raw")

    def __init__(self, number: int, raw: bytes) -> None:
        self.number = number
        self.raw = raw
