"""The kernel command line, built so that the kernel reads back what was meant.

Source: Documentation/admin-guide/kernel-parameters.rst; lib/cmdline.c for quoting.
"""

from __future__ import annotations

from pyvmm_loader.errors import (
    CmdlineError,
    HasEquals,
    HasSpace,
    InvalidAscii,
    InvalidCapacity,
    InvalidQuote,
    MissingVal,
    MmioSize,
    NoBootArgsInserted,
    NoQuoteSpace,
    TooLarge,
)
from pyvmm_loader.memory import address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Self, SupportsIndex

SEPARATOR = " -- "


def _printable(text: str) -> None:
    for at, character in enumerate(text):
        if not " " <= character <= "~":
            raise InvalidAscii(
                f"character {character!r} at {at}: a command line takes printable ASCII only", position=at
            )


def _value(text: str) -> None:
    _printable(text)
    quoted = len(text) >= 2 and text[0] == text[-1] == '"'
    if '"' in (text[1:-1] if quoted else text):
        raise InvalidQuote(f"value {text!r}: double quotes may only wrap the whole value", value=text)
    if " " in text and not quoted:
        raise NoQuoteSpace(f"value {text!r} has a space; wrap it in double quotes", value=text)


def quote(value: str) -> str:
    """Return a value as the command line needs it: in double quotes if there is a space in it.

    The kernel knows no escapes (lib/cmdline.c, next_arg): a value with a double quote raises InvalidQuote.

    >>> quote("ttyS0"), quote("file drivers/* +p")
    ('ttyS0', '"file drivers/* +p"')
    """
    _printable(value)
    if '"' in value:
        raise InvalidQuote(f"value {value!r}: the kernel cannot be told a double quote", value=value)
    return f'"{value}"' if " " in value else value


def split_arguments(line: str) -> list[tuple[str, str | None]]:
    """Split a command line into (key, value) pairs as the kernel does; a bare word has the value None.

    >>> split_arguments('quiet dyndbg="file a.c +p" root=/dev/vda -- 3')
    [('quiet', None), ('dyndbg', 'file a.c +p'), ('root', '/dev/vda'), ('--', None), ('3', None)]
    """
    found: list[tuple[str, str | None]] = []
    quoted, start = False, 0
    for at in range(len(line) + 1):
        if at < len(line) and line[at] == '"':
            quoted = not quoted
        elif at == len(line) or (line[at].isspace() and not quoted):
            if at > start:
                found.append(_argument(line[start:at]))
            start = at + 1
    return found


def _argument(word: str) -> tuple[str, str | None]:
    # next_arg: quotes may open before the key or before the value; the last one is taken off the end
    whole = word.startswith('"')
    if whole:
        word = word[1:]
    at = word.find("=", 1)  # one that begins the word is a part of its name
    if at < 0:
        return word.removesuffix('"') if whole else word, None
    key, value = word[:at], word[at + 1 :]
    opened = value.startswith('"')
    if opened:
        value = value[1:]
    return key, value.removesuffix('"') if whole or opened else value


def _split(text: str) -> tuple[str, str]:
    """Split at the first separator outside quotes."""
    quoted = False
    for at, character in enumerate(text):
        if character == '"':
            quoted = not quoted
        elif not quoted and text.startswith(SEPARATOR, at):
            return text[:at].strip(), text[at + len(SEPARATOR) :].strip()
    return text.strip(), ""


class Cmdline:
    """Arguments for the kernel and, behind ` -- `, for init. `capacity` counts the terminating NUL.

    >>> line = Cmdline(128)
    >>> line.insert("console", "ttyS0")
    >>> line.add_virtio_mmio_device(4096, 0xD0000000, 5)
    >>> str(line)
    'console=ttyS0 virtio_mmio.device=4K@0xd0000000:5'
    """

    __slots__ = ("_boot", "_init", "capacity")

    def __init__(self, capacity: int) -> None:
        if capacity <= 0:
            raise InvalidCapacity(f"capacity {capacity}: at least 1, for the terminating NUL", capacity=capacity)
        self.capacity = capacity
        self._boot = ""
        self._init = ""

    @classmethod
    def try_from(cls, text: str, capacity: int) -> Self:
        """Take a whole command line, trimmed, such as that of /proc/cmdline, init's arguments included."""
        line = cls(capacity)
        boot, init = _split(text)
        _printable(boot + init)
        line._set(boot, init)
        return line

    def _set(self, boot: str, init: str) -> None:
        if init and boot.count('"') % 2:
            raise InvalidQuote(f"{boot!r} ends within quotes, and would take init's words; close them", value=boot)
        need = len(boot) + (len(SEPARATOR) + len(init) if init else 0) + 1
        if need > self.capacity:
            raise TooLarge(
                f"the command line needs {need} bytes with its NUL, {self.capacity} are allowed; shorten it",
                needed=need,
                capacity=self.capacity,
            )
        self._boot, self._init = boot, init

    def insert(self, key: str, val: str) -> None:
        """Append `key=val`."""
        self.insert_multiple(key, [val])

    def insert_multiple(self, key: str, vals: Iterable[str]) -> None:
        """Append `key=val1,val2,...`; MissingVal when there is none."""
        _printable(key)
        if '"' in key:
            raise InvalidQuote(f"key {key!r} has a double quote, which the kernel takes off", value=key)
        if " " in key:
            raise HasSpace(f"key {key!r} has a space; use one insert for each argument", key=key)
        if "=" in key:
            raise HasEquals(f"key {key!r} has an equals sign; pass the value as the value", key=key)
        values = list(vals)
        if not key:
            raise MissingVal(f"values {values} without a key; name the parameter", key=key)
        if not values:
            raise MissingVal(f"key {key!r} has no value; use insert_str for a bare word", key=key)
        for value in values:
            _value(value)
        if len(values) > 1 and any('"' in value for value in values):
            # next_arg takes quotes off the ends of the whole, and leaves those inside
            raise InvalidQuote(f"values {values}: only a single value can be quoted", value=key)
        self._append(f"{key}={','.join(values)}")

    def insert_str(self, slug: str) -> None:
        """Append words as they are, trimmed; what is behind a ``--`` in them is init's."""
        boot, init = _split(slug)
        _printable(boot + init)
        if boot:
            self._append(boot)
        if init:
            self._set(self._boot, f"{self._init} {init}" if self._init else init)

    def insert_init_args(self, slug: str) -> None:
        """Append words for init; they come behind ``--``."""
        words = slug.strip()
        _printable(words)
        if words:
            self._set(self._boot, f"{self._init} {words}" if self._init else words)

    def add_virtio_mmio_device(self, size: int, baseaddr: SupportsIndex, irq: int, id: int | None = None) -> None:  # noqa: A002 - linux-loader's name
        """Append `virtio_mmio.device=<size>@<baseaddr>:<irq>[:<id>]`.

        Raises MmioSize for a window of no bytes, CmdlineError for numbers that the kernel would read as others: size
        and address have 64 bits, `irq` 32 and `id` 31.
        """
        if size <= 0:
            raise MmioSize(f"a virtio-mmio window of {size} bytes; the kernel wants at least 0x100", size=size)
        base = address(baseaddr)
        if base < 0 or base + size > 1 << 64:
            raise CmdlineError(f"a virtio-mmio window of {size:#x} bytes at {base:#x} leaves 64 bits", base=base)
        # drivers/virtio/virtio_mmio.c, vm_cmdline_set: "@%lli:%u%n:%d%n"
        for name, number, bits in (("irq", irq, 32), ("id", id or 0, 31)):
            if not 0 <= number < 1 << bits:
                raise CmdlineError(f"a virtio-mmio device with {name} {number}: give 0 to 2**{bits} - 1", number=number)
        text = str(size)
        for unit, shift in (("G", 30), ("M", 20), ("K", 10)):
            if not size % (1 << shift):
                text = f"{size >> shift}{unit}"
                break
        tail = "" if id is None else f":{id}"
        self.insert_str(f"virtio_mmio.device={text}@{base:#x}:{irq}{tail}")

    def _append(self, words: str) -> None:
        if self._boot.count('"') % 2:
            raise InvalidQuote(f"{self._boot!r} ends within quotes; close them first", value=self._boot)
        if ("--", None) in split_arguments(self._boot):
            raise CmdlineError(f"{self._boot!r} has a '--', behind which all is init's; insert {words!r} first")
        self._set(f"{self._boot} {words}" if self._boot else words, self._init)

    def as_cstring(self) -> bytes:
        """Return the bytes for guest memory, NUL included."""
        return str(self).encode("ascii") + b"\0"

    __bytes__ = as_cstring

    def __str__(self) -> str:
        if self._init and not self._boot:
            raise NoBootArgsInserted("arguments for init, but none for the kernel; insert those first")
        return self._whole()

    def _whole(self) -> str:
        return self._boot + (SEPARATOR + self._init if self._init else "")

    def __len__(self) -> int:
        return len(str(self))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Cmdline):
            return NotImplemented
        # what the kernel reads counts, not whether init's words came by insert_init_args or behind a "--" of insert_str
        return self._whole() == other._whole()

    __hash__ = None  # type: ignore[assignment]  # a command line grows

    def __repr__(self) -> str:
        return f"<Cmdline {self._boot!r} init={self._init!r} capacity={self.capacity}>"
