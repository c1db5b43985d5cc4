"""A C structure with attributes named as in linux/kvm.h, typed for Python.

A subclass names its C type and annotates its fields; `int` is a scalar, `bytes`-like arrays are writable
`memoryview`s, `Array` is an array of numbers, and the name of another structure is a nested one.
Layout comes from the compiler through cffi, so there is no offset to get wrong.
"""

from __future__ import annotations

import sys
from operator import attrgetter

from pyvmm_kvm._kvm import ffi
from pyvmm_kvm.hold import Hold
from pyvmm_kvm.near import no_attribute

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from typing import Self

    from typing_extensions import Buffer

    from pyvmm_kvm._kvm import CData


_UNUSED = "pad", "reserved"  # how the kernel calls what has no meaning


class Array:
    """Numbers in a C array: `len`, indexing, iteration and item assignment, without copying."""

    __slots__ = ("_data", "_owner")

    def __init__(self, data: CData, owner: object) -> None:
        self._data = data
        self._owner = owner  # cffi's inner references do not keep the outer structure alive

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> int:
        value: int = self._data[index]
        return value

    def __setitem__(self, index: int, value: int) -> None:
        self._data[index] = value

    def __iter__(self) -> Iterator[int]:
        return iter(self._data)

    def __eq__(self, other: object) -> bool:
        return list(self) == list(other) if hasattr(other, "__iter__") else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it can change

    def __repr__(self) -> str:
        return f"[{', '.join(format(value, '#x') for value in self)}]"


def _scalar(name: str) -> property:
    def put(self: Struct, value: int) -> None:
        setattr(self.cdata, name, value)

    return property(attrgetter(f"cdata.{name}"), put)


def _array(name: str) -> property:
    def get(self: Struct) -> Array:
        return Array(getattr(self.cdata, name), self)

    def put(self: Struct, values: Iterable[int]) -> None:
        new, room = list(values), len(getattr(self.cdata, name))
        if len(new) != room:
            raise ValueError(f"{name} has {room} numbers, and {len(new)} were given")
        setattr(self.cdata, name, new)

    return property(get, put)


def _bytes(name: str) -> property:
    def get(self: Struct) -> memoryview:
        start = ffi.offsetof(self._ctype, name)
        return self.view()[start : start + ffi.sizeof(getattr(self.cdata, name))]

    def put(self: Struct, value: Buffer) -> None:
        get(self)[:] = memoryview(value).cast("B")

    return property(get, put)


def _nested(name: str, type_name: str, module: str) -> property:
    def get(self: Struct) -> Struct:
        kind: type[Struct] = getattr(sys.modules[module], type_name)
        return kind.inside(self, ffi.addressof(self.cdata, name), ffi.offsetof(self._ctype, name))

    def put(self: Struct, value: object) -> None:
        get(self).replace(value)

    return property(get, put)


class Struct:
    """One C structure. Build it from keywords, from bytes (`from_bytes`), or get it from a method.

    Comparison, `copy()` and `bytes()` go by content; `update(other)` copies the attributes that `other` has, whatever
    its type, so a structure can be filled from any object that names its parts as linux/kvm.h does.

    For subclasses and for ioctls: `cdata` is the cffi pointer to it, `view()` its bytes, `field_names` its fields in
    order, and `inside()` makes one that lies in another.
    """

    __slots__ = ("_owner", "_start", "cdata")

    _ctype = ""
    field_names: tuple[str, ...] = ()

    def __init_subclass__(cls, ctype: str = "") -> None:
        if "__slots__" not in vars(cls):
            raise TypeError(f"{cls.__name__} needs __slots__ = (), or it takes a misspelt field for one of its own")
        if not ctype:
            return
        cls._ctype = ctype
        names = []
        for name, kind in cls.__annotations__.items():
            names.append(name)
            if kind == "int":
                member = _scalar(name)
            elif kind == "Array":
                member = _array(name)
            elif kind == "memoryview":
                member = _bytes(name)
            else:
                member = _nested(name, kind, cls.__module__)
            setattr(cls, name, member)
        cls.field_names = tuple(names)

    def __init__(self, **fields: object) -> None:
        self.cdata = ffi.new(f"{self._ctype} *")
        self._owner: Struct | Hold | None = None
        self._start = 0
        for name, value in fields.items():
            if name not in self.field_names:
                raise TypeError(f"{type(self).__name__} has no field {name!r}: it has {', '.join(self.field_names)}")
            setattr(self, name, value)

    def __setattr__(self, name: str, value: object) -> None:
        try:
            object.__setattr__(self, name, value)
        except AttributeError:
            raise no_attribute(self, name, self.field_names) from None

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> object:
            raise no_attribute(self, name, self.field_names)

    @classmethod
    def inside(cls, owner: Struct, pointer: CData, start: int) -> Self:
        """Return the part of another structure that `pointer` leads to, `start` bytes behind the beginning of it."""
        self = cls.__new__(cls)
        self.cdata = pointer
        self._owner = owner
        self._start = start
        return self

    @classmethod
    def over(cls, memory: Buffer) -> Self:
        """Return one that lives in this writable memory, of at least `size()` bytes: reading and assigning go there."""
        self = cls.__new__(cls)
        self.cdata = ffi.from_buffer(f"{cls._ctype} *", memory, require_writable=True)
        if (room := memoryview(memory).nbytes) < cls.size():
            raise ValueError(f"{cls.__name__} has {cls.size()} bytes, and {room} were given")
        self._owner = Hold(self.cdata, memory)
        self._start = 0
        return self

    def view(self) -> memoryview:
        """Return its bytes, live and writable."""
        owner = self._owner
        if owner is None:
            return memoryview(ffi.buffer(self.cdata)).cast("B")
        if isinstance(owner, Hold):
            # not of `cdata`, which is nobody else's
            return memoryview(owner.buffer).cast("B")[: ffi.sizeof(self._ctype)]
        return owner.view()[self._start : self._start + ffi.sizeof(self._ctype)]

    @classmethod
    def size(cls) -> int:
        """Return its size in bytes on this architecture."""
        return ffi.sizeof(cls._ctype)

    @classmethod
    def from_bytes(cls, data: Buffer) -> Self:
        """Read one from bytes. A shorter block leaves zeros behind it and a longer one is cut, as rust-vmm does."""
        self = cls()
        view = memoryview(data).cast("B")[: cls.size()]
        self.view()[: len(view)] = view
        return self

    def __bytes__(self) -> bytes:
        return bytes(self.view())

    def copy(self) -> Self:
        """Return an independent structure with the same content."""
        return self.from_bytes(self.view())

    def update(self, other: object) -> None:
        """Copy every field that `other` has as an attribute of the same name, nested structures included."""
        if type(other) is type(self):
            self.view()[:] = other.view()
            return
        found = False
        for name in self.field_names:
            if hasattr(other, name):
                setattr(self, name, getattr(other, name))
                found = True
        if not found:
            raise TypeError(f"{type(other).__name__} has none of the fields of {type(self).__name__}")

    def replace(self, other: object) -> None:
        """Do as `update`; TypeError where `other` lacks a field, or is another structure."""
        if type(other) is not type(self):
            names = [name for name in self.field_names if not name.startswith(_UNUSED) and not hasattr(other, name)]
            if names or isinstance(other, Struct):
                lacks = f": it has no {', '.join(names)}" if names else ""
                raise TypeError(f"{type(other).__name__} is no {type(self).__name__}{lacks}")
        self.update(other)

    def __eq__(self, other: object) -> bool:
        return bytes(self) == bytes(other) if isinstance(other, type(self)) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # it can change

    def __repr__(self) -> str:
        parts = (f"{name}={_show(getattr(self, name))}" for name in self.field_names)
        return f"{type(self).__name__}({', '.join(parts)})"


def _show(value: object) -> str:
    if isinstance(value, int):
        return format(value, "#x")
    if isinstance(value, memoryview):
        return f"<{len(value)} bytes>"
    return repr(value)
