"""ByteValued: how an object is laid out in memory: what `read_obj`, `VolatileRef` and `VolatileArrayRef` take."""

from __future__ import annotations

from struct import Struct
from struct import error as StructError  # noqa: N812 - it is the standard library's name that is odd

from pyvmm_memory.errors import GuestMemoryError, InvalidBuffer

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any, Protocol, TypeAlias

    from typing_extensions import Buffer

    class ByteValued(Protocol):
        """A kind of object that is its bytes: it has a `size` in bytes and is made by `from_slice`."""

        size: int

        def from_slice(self, data: Buffer, /) -> Any:  # noqa: ANN401 - the kind decides
            """Return the object of these bytes."""
            ...

    Kind: TypeAlias = str | Struct | ByteValued


class ByteLayout:
    """`size` bytes, and how to get from them to an object and back. `scalar`: one plain little-endian integer."""

    __slots__ = ("pack", "scalar", "size", "unpack")

    def __init__(
        self, size: int, unpack: Callable[[Buffer], Any], pack: Callable[[Any], bytes], *, scalar: bool = False
    ) -> None:
        self.size = size
        self.unpack = unpack
        self.pack = pack
        self.scalar = scalar and size in (1, 2, 4, 8)


def layout_of(kind: Kind) -> ByteLayout:
    """Return the layout of a struct format, a Struct, or a kind with `size` and `from_slice`.

    A format without a byte order is little-endian and without padding. One field is that value, several are a tuple.
    Raises InvalidBuffer for anything else.
    """
    if isinstance(kind, str):
        text = kind if kind[:1] in "<>=@!" and kind else f"<{kind}"
        try:
            return _of_struct(Struct(text), scalar=text[0] in "<=@" and text[1:] in {*"BHIQ"})
        except StructError as error:
            raise InvalidBuffer(f"{kind!r} is no struct format: {error}") from error
    if isinstance(kind, Struct):
        return _of_struct(kind, scalar=False)
    size, from_slice = getattr(kind, "size", None), getattr(kind, "from_slice", None)
    if not isinstance(size, int) or from_slice is None:
        raise InvalidBuffer(f"{kind!r} is no struct format, Struct, or type with size and from_slice")
    return ByteLayout(size, from_slice, lambda value: bytes_of_kind(kind, value))


def _of_struct(struct: Struct, *, scalar: bool) -> ByteLayout:
    single = len(struct.unpack(bytes(struct.size))) == 1

    def pack(value: Any) -> bytes:  # noqa: ANN401 - the kind decides
        try:
            return struct.pack(value) if single and not isinstance(value, tuple) else struct.pack(*value)
        except (StructError, TypeError) as error:
            raise GuestMemoryError(f"{value!r} does not fit in {struct.format!r}: {error}") from error

    return ByteLayout(
        struct.size, lambda data: struct.unpack(data)[0] if single else struct.unpack(data), pack, scalar=scalar
    )


def bytes_of_kind(kind: Any, value: Any) -> bytes:  # noqa: ANN401 - the kind decides
    """Return the bytes of `value`, made one of `kind` if it is not."""
    return as_bytes(value if isinstance(value, kind) else kind(value))


def as_bytes(value: Any) -> bytes:  # noqa: ANN401 - the kind decides
    """Return the bytes of an object: its `as_slice()`, or a copy of the buffer that it is. Raises InvalidBuffer."""
    as_slice = getattr(value, "as_slice", None)
    try:
        return bytes(as_slice() if as_slice is not None else memoryview(value))
    except TypeError as error:
        raise InvalidBuffer(f"{value!r} has no bytes: give a buffer or an integer of `endian`") from error
