"""What exits off the hot path share: each decodes its payload from the run page when it happens.

Payload offsets are those of the union in struct kvm_run (linux/kvm.h); a test compares them with the compiler's.
"""

from __future__ import annotations

import struct

from pyvmm_kvm.exits.hot import PAYLOAD_SIZE, VcpuExit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import ClassVar, Literal, Self


class RareExit(VcpuExit):
    """An exit whose fields are copied from its `payload`, which stays for fields that the VMM may write (`Live`).

    A subclass gives the `layout` from which its `__match_args__` are read, or a `decode` of its own. The payload is the
    exit's own: what is answered in it goes into the run page at the next `run()`.
    """

    __slots__ = ("payload",)
    layout: ClassVar[struct.Struct] = struct.Struct("")
    payload: memoryview

    def __init_subclass__(cls) -> None:
        live = (name for kind in cls.__mro__ for name, member in vars(kind).items() if isinstance(member, Live))
        cls.ANSWERS = tuple(sorted(live))

    def __init__(self, *values: object, payload: memoryview | None = None) -> None:
        self.note("payload", payload if payload is not None else memoryview(bytearray(PAYLOAD_SIZE)))
        for name, value in zip(self.__match_args__, values, strict=True):
            self.note(name, value)

    @classmethod
    def decode(cls, payload: memoryview) -> Self:
        """Read it from the run page's union."""
        return cls(*cls.layout.unpack_from(payload), payload=payload)


class Live:
    """A field that the VMM answers in: reading and writing go to the exit's payload."""

    __slots__ = ("code", "index")
    code: Literal["B", "I", "Q"]

    def __init__(self, offset: int, code: Literal["B", "I", "Q"] = "Q") -> None:
        self.code = code
        self.index = offset // struct.calcsize(code)

    def __get__(self, exit_: RareExit, owner: type) -> int:
        value: int = exit_.payload.cast(self.code)[self.index]
        return value

    def __set__(self, exit_: RareExit, value: int) -> None:
        exit_.payload.cast(self.code)[self.index] = value
