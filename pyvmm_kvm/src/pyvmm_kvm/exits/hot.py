"""Why a vCPU came back from the guest: one class per exit reason, made for `match`.

An exit says what happened, and stays true for as long as somebody keeps it: neither it nor its `data` changes when the
vCPU runs on. For `IoIn` and `MmioRead` `data` is where the answer goes, until the next `run()`; after that nobody asks
any more. A vCPU hands out the same object again whenever the same thing happens and nobody holds the earlier one, so
two of them may be compared by what they say, not by `is`.

In a loop that handles 100 000 exits a second, `type(exit) is IoOut` with `exit.port` costs 0.1 us, and the pattern
`case IoOut(port, data):` 0.5 us, for CPython makes a set, a list and a tuple for it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar, NoReturn

    from typing_extensions import Buffer


PAYLOAD_SIZE = 256  # bytes of the union in struct kvm_run
_set = object.__setattr__


class VcpuExit:
    """Any exit. `reason` is its KVM_EXIT_* number, or -1 for the two that are an errno of KVM_RUN.

    What happened cannot be changed: only the fields that a subclass says take an answer are assigned to. It names
    those in `ANSWERS`, and makes its own attributes with `note`.
    """

    __slots__ = ()
    __match_args__: ClassVar[tuple[str, ...]] = ()
    reason: ClassVar[int] = -1
    #: the attributes that may be assigned to
    ANSWERS: ClassVar[tuple[str, ...]] = ()

    def note(self, name: str, value: object) -> None:
        """Set an attribute while the exit is made."""
        _set(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        if name not in self.ANSWERS:
            refuse_field(self, name, self.ANSWERS)
        self.answer(name, value)

    def answer(self, name: str, value: object) -> None:
        """Take an assignment to one of `ANSWERS`."""
        _set(self, name, value)

    def __repr__(self) -> str:
        fields = ", ".join(f"{name}={_show(getattr(self, name))}" for name in self.__match_args__)
        return f"{type(self).__name__}({fields})"


def refuse_field(exit_: VcpuExit, name: str, answers: tuple[str, ...]) -> NoReturn:
    """Raise the AttributeError for a field that is not there, or says what happened and takes no answer."""
    kind = type(exit_).__name__
    if hasattr(type(exit_), name):
        cure = f"answer in {' or '.join(answers)}" if answers else "nobody asked for an answer"
        raise AttributeError(f"{kind}.{name} says what happened and cannot be set: {cure}", name=name, obj=exit_)
    from pyvmm_kvm.near import no_attribute

    raise no_attribute(exit_, name)


def _show(value: object) -> str:
    if isinstance(value, int):
        return format(value, "#x")
    if isinstance(value, (memoryview, bytes)):
        return f"<{bytes(value).hex(' ')}>"
    if isinstance(value, tuple):
        return f"({', '.join(_show(item) for item in value)})"
    return repr(value)


def _put(view: memoryview, data: Buffer) -> None:
    with memoryview(data) as given:
        size = given.nbytes
        if size != len(view):
            raise ValueError(f"the guest reads {len(view)} bytes: an answer of {size} is none")
        view[:] = given.cast("B")


class _Io(VcpuExit):
    __slots__ = ("data", "port")
    port: int
    data: memoryview
    reason = 2

    def __init__(self, port: int = 0, data: memoryview = memoryview(b"")) -> None:  # noqa: B008 - immutable
        _set(self, "port", port)
        _set(self, "data", data)

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
    """The guest reads a port: write the answer into `data`, all of it, in items of `size` bytes.

    `exit.data = b"..."` of just that length does so too; `ValueError` for another.
    """

    __slots__ = ()
    # on the class itself: `match` looks the name up without the type's cache, base by base
    __match_args__ = ("port", "data")
    ANSWERS = ("data",)

    def answer(self, name: str, value: Buffer) -> None:  # type: ignore[override] # noqa: ARG002 - there is but one
        """Put an answer of the right length into `data`."""
        _put(self.data, value)


class StringOut(IoOut):
    """An `IoOut` of a string instruction (``rep outsb``)."""

    __slots__ = ("size",)
    size: int

    def __init__(self, port: int, data: memoryview, size: int) -> None:
        super().__init__(port, data)
        _set(self, "size", size)


class StringIn(IoIn):
    """An `IoIn` of a string instruction (``rep insb``)."""

    __slots__ = ("size",)
    size: int

    def __init__(self, port: int, data: memoryview, size: int) -> None:
        super().__init__(port, data)
        _set(self, "size", size)


class _Mmio(VcpuExit):
    __slots__ = ("addr", "data")
    addr: int
    data: memoryview
    reason = 6

    def __init__(self, addr: int = 0, data: memoryview = memoryview(b"")) -> None:  # noqa: B008 - immutable
        _set(self, "addr", addr)
        _set(self, "data", data)


class MmioRead(_Mmio):
    """The guest reads 1 to 8 bytes at a guest physical address without memory: write the answer into `data`.

    `exit.data = b"..."` of just that length does so too; `ValueError` for another.
    """

    __slots__ = ()
    # on the class itself: `match` looks the name up without the type's cache, base by base
    __match_args__ = ("addr", "data")
    ANSWERS = ("data",)

    def answer(self, name: str, value: Buffer) -> None:  # type: ignore[override] # noqa: ARG002 - there is but one
        """Put an answer of the right length into `data`."""
        _put(self.data, value)


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
    number: int
    raw: bytes

    def __init__(self, number: int, raw: bytes) -> None:
        _set(self, "number", number)
        _set(self, "raw", raw)

    @property
    def hardware_exit_reason(self) -> int:
        """For number 0: what the processor said."""
        return int.from_bytes(self.raw[:8], "little")

    def __repr__(self) -> str:
        return f"Unknown({self.number}, {self.raw[:32].hex(' ')}...)"
