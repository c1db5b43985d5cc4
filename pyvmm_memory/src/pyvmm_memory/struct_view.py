"""StructView: named fields of a structure in guest memory, read and written where they are."""

from __future__ import annotations

from struct import Struct
from struct import error as StructError  # noqa: N812 - it is the standard library's name that is odd

from pyvmm_memory.errors import GuestMemoryError, InvalidBuffer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from typing import Any, TypeAlias

    from pyvmm_memory.bytes import Bytes

    Layout: TypeAlias = Mapping[str, str] | Iterable[tuple[str, str]]


class StructView:
    """The fields of `layout` (name: struct format, in order, without padding) at `address`.

    Fields are attributes and items. Each is read when it is asked for, once: copy what is checked before it is used.
    Integers of 1, 2, 4 and 8 bytes are one access where they are aligned.

    >>> from pyvmm_memory import GuestMemoryMmap
    >>> with GuestMemoryMmap.from_ranges([(0, 0x1000)]) as memory:
    ...     descriptor = memory.struct(0x10, {"addr": "Q", "len": "I", "flags": "H", "next": "H"})
    ...     descriptor.len = 512
    ...     descriptor.size, descriptor["len"], descriptor.read()["next"]
    ...     descriptor
    (16, 512, 0)
    <struct at 0x10: addr=0x0 len=0x200 flags=0x0 next=0x0>

    Raises InvalidBuffer for a layout that is none. Access raises what `read_slice` and `write_slice` do.
    """

    __slots__ = ("_fields", "_memory", "address", "size")

    _fields: dict[str, tuple[int, Struct]]
    _memory: Bytes
    #: where it begins
    address: int
    #: in bytes
    size: int

    def __init__(self, memory: Bytes, address: int, layout: Layout, byteorder: str = "<") -> None:
        fields: dict[str, tuple[int, Struct]] = {}
        size = 0
        pairs = layout.items() if hasattr(layout, "items") else layout
        for name, format_ in pairs:
            try:
                field = Struct(byteorder + format_)
            except (StructError, TypeError) as error:
                raise InvalidBuffer(f"field {name!r}: {format_!r} is no struct format: {error}") from error
            if name in fields or name in ("read", "write", "address", "size", "offset_of") or name.startswith("_"):
                raise InvalidBuffer(f"{name!r} cannot be the name of a field here")
            fields[name] = (size, field)
            size += field.size
        set_ = object.__setattr__
        set_(self, "_fields", fields)
        set_(self, "_memory", memory)
        set_(self, "address", address)
        set_(self, "size", size)

    def offset_of(self, name: str) -> int:
        """Return where a field begins, in bytes from the start."""
        return self._field(name)[0]

    def _field(self, name: str) -> tuple[int, Struct]:
        try:
            return self._fields[name]
        except KeyError:
            raise AttributeError(f"no field {name!r}: there are {', '.join(self._fields)}") from None

    def __getitem__(self, name: str) -> Any:  # noqa: ANN401 - the format decides
        offset, field = self._field(name)
        copy = bytearray(field.size)
        self._memory.read_slice(copy, self.address + offset)
        values = field.unpack(copy)
        return values[0] if len(values) == 1 else values

    def __setitem__(self, name: str, value: Any) -> None:  # noqa: ANN401 - the format decides
        offset, field = self._field(name)
        try:
            data = field.pack(*value) if isinstance(value, tuple) else field.pack(value)
        except StructError as error:
            raise GuestMemoryError(f"{value!r} does not fit in field {name!r}: {error}") from error
        self._memory.write_slice(data, self.address + offset)

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the format decides
        return self[name]

    def __setattr__(self, name: str, value: Any) -> None:  # noqa: ANN401 - the format decides
        self[name] = value

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def read(self) -> dict[str, Any]:
        """Return a copy of all fields, taken in one piece."""
        copy = bytearray(self.size)
        self._memory.read_slice(copy, self.address)
        result: dict[str, Any] = {}
        for name, (offset, field) in self._fields.items():
            values = field.unpack_from(copy, offset)
            result[name] = values[0] if len(values) == 1 else values
        return result

    def write(self, **values: Any) -> None:  # noqa: ANN401 - the format decides
        """Write these fields, in the order given: the one that publishes the others comes last."""
        for name, value in values.items():
            self[name] = value

    def __repr__(self) -> str:
        try:
            fields = self.read()
        except GuestMemoryError as error:
            return f"<struct at {self.address:#x}: {error}>"
        shown = (
            f"{name}={value:#x}" if isinstance(value, int) else f"{name}={value!r}" for name, value in fields.items()
        )
        return f"<struct at {self.address:#x}: {' '.join(shown)}>"
