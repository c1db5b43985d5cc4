"""The form of a saved state: a header with the version, then named parts, read back without trusting a length.

A state may come from anywhere. It is checked whole before anything changes: which parts there are, and of each that it
has the size of the structure it is, for KVM reads whole structures and takes no length. What only the kernel can know
of a value is left to the kernel, whose refusal is a `KvmError`.
"""

from __future__ import annotations

import struct

from pyvmm_kvm.errors import StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import ClassVar, Protocol, Self, TypeAlias

    from typing_extensions import Buffer

    from pyvmm_kvm.struct import Struct

    Check: TypeAlias = Callable[[bytes], object]

    class Runnable(Protocol):
        """As much of a vCPU as finishing its I/O needs."""

        def set_kvm_immediate_exit(self, value: int) -> None:
            """Make the next run return at once."""

        def run(self) -> object:
            """Call KVM_RUN."""


_MAGIC = b"pyvmmkvm"
_VERSION = 1
_HEADER = struct.Struct("<8sII")
_PART = struct.Struct("<16sI")
_LARGEST = 1 << 24


def pack(kind: int, parts: dict[str, bytes]) -> bytes:
    """Return one block: a header with the version, then named parts."""
    body = b"".join(_PART.pack(name.encode(), len(data)) + data for name, data in parts.items())
    return _HEADER.pack(_MAGIC, _VERSION, kind) + body


def unpack(kind: int, data: Buffer) -> dict[str, bytes]:
    """Read such a block, trusting nothing about its lengths."""
    view = memoryview(data).cast("B")
    if len(view) < _HEADER.size:
        raise StateError("a saved state has at least 16 bytes")
    magic, version, found = _HEADER.unpack_from(view)
    if magic != _MAGIC or found != kind:
        raise StateError("this is not a saved state of that kind")
    if version != _VERSION:
        raise StateError(f"the state has version {version}; this package reads version {_VERSION}")
    parts = {}
    at = _HEADER.size
    while at < len(view):
        if at + _PART.size > len(view):
            raise StateError("the state is cut off inside a part's name")
        name, length = _PART.unpack_from(view, at)
        at += _PART.size
        if length > _LARGEST or at + length > len(view):
            raise StateError(f"part {name!r} is cut off")
        try:
            readable = name.rstrip(b"\0").decode("ascii")
        except UnicodeDecodeError as error:
            raise StateError(f"part {name!r} has no readable name") from error
        if readable in parts:
            raise StateError(f"part {readable!r} is there twice")
        parts[readable] = bytes(view[at : at + length])
        at += length
    return parts


def finish_io(vcpu: Runnable) -> None:
    """Complete the I/O of the last exit without entering the guest, which would repeat it after a restore otherwise."""
    vcpu.set_kvm_immediate_exit(1)
    try:
        vcpu.run()
    finally:
        vcpu.set_kvm_immediate_exit(0)


def whole(kind: type[Struct]) -> Check:
    """Return the check that a part has the size of this structure, which only a host of its architecture knows."""

    def check(data: bytes) -> None:
        exactly(kind.size())(data)

    return check


def exactly(size: int) -> Check:
    """Return the check that a part has so many bytes."""

    def check(data: bytes) -> None:
        if len(data) != size:
            raise StateError(f"it has {len(data)} bytes, and KVM reads {size}")

    return check


def rows(size: int, most: int) -> Check:
    """Return the check that a part is a number of rows of `size` bytes each, at most `most` of them."""

    def check(data: bytes) -> None:
        if len(data) % size or len(data) > size * most:
            raise StateError(f"{len(data)} bytes are no rows of {size}, of which there are {most} at most")

    return check


class State:
    """Named parts; a subclass says by `kind` which number it has and by `required` which parts it cannot do without.

    `PARTS` says which parts there may be, and how each is checked: a function of its bytes that raises `StateError`.
    `restore` calls `check` before it changes anything.
    """

    __slots__ = ("parts",)
    kind = 0
    required: tuple[str, ...] = ()
    PARTS: ClassVar[dict[str, Check]] = {}

    def __init__(self, parts: dict[str, bytes]) -> None:
        missing = [name for name in self.required if name not in parts]
        if missing:
            raise StateError(f"the state lacks {', '.join(missing)}")
        self.parts = parts

    def __bytes__(self) -> bytes:
        return pack(self.kind, self.parts)

    def check(self) -> None:
        """Raise `StateError` where a part is missing, is none of a state of this kind, or has not the form of it."""
        if missing := [name for name in self.required if name not in self.parts]:
            raise StateError(f"the state lacks {', '.join(missing)}")
        for name, data in self.parts.items():
            if name not in self.PARTS:
                raise StateError(f"the state has a part {name!r:.40}, and there is none: {', '.join(self.PARTS)}")
            try:
                self.PARTS[name](data)
            except StateError as error:
                raise StateError(f"part {name!r}: {error}") from error

    @classmethod
    def from_bytes(cls, data: Buffer) -> Self:
        """Read what `bytes(state)` made; `StateError` where it is damaged or of another version."""
        state = cls(unpack(cls.kind, data))
        state.check()
        return state

    def __eq__(self, other: object) -> bool:
        return self.parts == other.parts if isinstance(other, type(self)) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it can change

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {', '.join(f'{name} {len(data)}' for name, data in self.parts.items())}>"
