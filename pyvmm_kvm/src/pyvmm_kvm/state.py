"""The form of a saved state: a header with the version, then named parts, read back without trusting a length."""

from __future__ import annotations

import struct

from pyvmm_kvm.errors import StateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol, Self

    from typing_extensions import Buffer

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
            parts[name.rstrip(b"\0").decode("ascii")] = bytes(view[at : at + length])
        except UnicodeDecodeError as error:
            raise StateError(f"part {name!r} has no readable name") from error
        at += length
    return parts


def finish_io(vcpu: Runnable) -> None:
    """Complete the I/O of the last exit without entering the guest, which would repeat it after a restore otherwise."""
    vcpu.set_kvm_immediate_exit(1)
    try:
        vcpu.run()
    finally:
        vcpu.set_kvm_immediate_exit(0)


class State:
    """Named parts; a subclass says by `kind` which number it has and by `required` which parts it cannot do without."""

    kind = 0
    required: tuple[str, ...] = ()

    def __init__(self, parts: dict[str, bytes]) -> None:
        missing = [name for name in self.required if name not in parts]
        if missing:
            raise StateError(f"the state lacks {', '.join(missing)}")
        self.parts = parts

    def __bytes__(self) -> bytes:
        return pack(self.kind, self.parts)

    @classmethod
    def from_bytes(cls, data: Buffer) -> Self:
        """Read what `bytes(state)` made; `StateError` where it is damaged or of another version."""
        return cls(unpack(cls.kind, data))

    def __eq__(self, other: object) -> bool:
        return self.parts == other.parts if isinstance(other, type(self)) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it can change

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {', '.join(f'{name} {len(data)}' for name, data in self.parts.items())}>"
