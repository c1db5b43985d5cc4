"""Saved state: what every device answers to `state()` and takes in `restore()`.

A state is a dictionary of numbers, booleans, strings and lists of these, so that it goes through JSON, with the
device's name and a version. `restore` looks at everything before it changes anything: a state from another device,
another version or a hostile file is a `DeviceStateError`, and the device is as it was.

The rules, which hold for whatever has a state:

- `check_state` looks at all of a state, its parts included, and changes nothing; `restore` begins with it. So nothing
  is reset, unmapped or closed for a state that is refused.
- A kind accepts its own type and no other: no boolean for a number, no number for a boolean, no text that looks like
  either, nothing that is only equal (1.0, NaN, Infinity).
- The work is linear in the size of the state: every list and text has a bound, and nothing is looked at twice.
- Whatever is wrong is a `DeviceStateError`, and its message has a bound, too: a value is shown by `show`, never by
  ``repr``, which has no end for lists in lists.

There are three ways to have one. Whatever is described by fields alone is a `Stateful`; whatever is made of parts has
them saved and restored by `save_parts` and `restore_parts`; and whatever has a shape of its own saves and loads the
fields in it by `save_fields` and `load_fields`. The kinds that fields have are the same for all: `uint`, `FLAG`,
`array(uint(8), 16)`, and so on.
"""

from __future__ import annotations

from pyvmm_device.errors import DeviceStateError

SHOWN_BITS, SHOWN_TEXT, SHOWN_NAMES = 64, 24, 5

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping
    from types import TracebackType
    from typing import Any, ClassVar, Protocol

    class Lock(Protocol):
        """A lock as `_thread.allocate_lock` makes it, or none (`NO_LOCK`)."""

        def __enter__(self) -> object: ...
        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
        ) -> object: ...


def show(value: object) -> str:
    """Return a short text for something in a state, whatever it is and however large.

    >>> show(7), show(1 << 900), show("x" * 1000), show([[[]]])
    ('7', 'a number of 901 bits', "'xxxxxxxxxxxxxxxxxxxxxxxx...'", 'list')
    """
    if isinstance(value, bool) or value is None:
        return str(value)
    if type(value) is int:
        return str(value) if value.bit_length() <= SHOWN_BITS else f"a number of {value.bit_length()} bits"
    if type(value) is float:
        return repr(value)
    if type(value) is str:
        return repr(value) if len(value) <= SHOWN_TEXT else repr(value[:SHOWN_TEXT] + "...")
    return type(value).__name__


class Kind:
    """How one field is written, and what is accepted back."""

    __slots__ = ("load", "name", "save")

    def __init__(self, name: str, save: Callable[[Any], object], load: Callable[[Any], Any]) -> None:
        self.name = name
        self.save = save
        self.load = load


def uint(bits: int) -> Kind:
    """Make the kind of numbers from 0 to 2**bits - 1."""

    def load(value: object) -> int:
        if type(value) is not int or not 0 <= value < 1 << bits:
            raise ValueError(f"{show(value)} is no number of {bits} bits")
        return value

    return Kind(f"{bits} bits", _same, load)


def number(least: int, most: int) -> Kind:
    """Make the kind of numbers from one to another, both included."""

    def load(value: object) -> int:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"{show(value)} is no number of {least} to {most}")
        return value

    return Kind(f"{least} to {most}", _same, load)


def sint(bits: int = 64) -> Kind:
    """Make the kind of numbers with a sign."""

    def load(value: object) -> int:
        if type(value) is not int or not -(1 << (bits - 1)) <= value < 1 << (bits - 1):
            raise ValueError(f"{show(value)} is no signed number of {bits} bits")
        return value

    return Kind(f"{bits} bits with a sign", _same, load)


def choice(*values: object) -> Kind:
    """Make the kind that is one of some values."""

    def load(value: object) -> object:
        # of the same type, for 1.0 and True are equal to 1
        if not any(type(value) is type(each) and value == each for each in values):
            raise ValueError(f"{show(value)} is none of {values}")
        return value

    return Kind("a choice", _same, load)


def blob(least: int, most: int | None = None) -> Kind:
    """Make the kind of bytes of a length (or from one to another), written in hexadecimal."""

    def load(value: object) -> bytearray:
        if not isinstance(value, str) or not least * 2 <= len(value) <= (least if most is None else most) * 2:
            raise ValueError("it has not the right length")
        data = bytearray.fromhex(value)
        if len(data) * 2 != len(value):
            raise ValueError("it has spaces, which fromhex skips")
        return data

    return Kind("bytes", lambda value: bytes(value).hex(), load)


def text(most: int, least: int = 0) -> Kind:
    """Make the kind of strings of so many characters."""

    def load(value: object) -> str:
        if type(value) is not str or not least <= len(value) <= most:
            raise ValueError(f"{show(value)} is no text of {least} to {most} characters")
        return value

    return Kind(f"a text of at most {most}", _same, load)


def record(kinds: Mapping[str, Kind]) -> Kind:
    """Make the kind of dictionaries that have these fields and no other."""

    def load(value: object) -> dict[str, Any]:
        return load_fields("one of its parts", kinds, value, others=())

    return Kind("fields", lambda value: {name: kind.save(value[name]) for name, kind in kinds.items()}, load)


def optional(kind: Kind) -> Kind:
    """Make the same kind, or None."""
    return Kind(
        f"{kind.name} or None",
        lambda value: None if value is None else kind.save(value),
        lambda value: None if value is None else kind.load(value),
    )


def array(kind: Kind, most: int, least: int = 0) -> Kind:
    """Make the kind of lists of so many."""

    def load(values: object) -> list[object]:
        if not isinstance(values, list) or not least <= len(values) <= most:
            raise ValueError(f"it is {show(values)}, no list of {least} to {most}")
        return [kind.load(value) for value in values]

    return Kind(f"a list, each {kind.name}", lambda values: [kind.save(value) for value in values], load)


def nested(make: Callable[[], Any]) -> Kind:
    """Make the kind of parts with a state of their own, each made anew from it; `make` makes one that nobody has."""

    def load(value: Any) -> Any:  # noqa: ANN401 - whatever is made
        part = make()
        part.restore(value)
        return part

    return Kind("a state", lambda part: part.state(), load)


def _same(value: object) -> object:
    return value


def _load_flag(value: object) -> bool:
    if value is not True and value is not False:
        raise ValueError(f"{show(value)} is neither true nor false")
    return value


def _load_part(value: object) -> dict[str, object]:
    if not isinstance(value, dict):
        raise ValueError(f"it is {type(value).__name__}, not a dictionary")
    return value


FLAG = Kind("true or false", _same, _load_flag)
PART = Kind("a state", _same, _load_part)
"""The state of something else, which looks at it itself."""


def save_fields(
    owner: object, kinds: Mapping[str, Kind], attributes: Mapping[str, str] | None = None
) -> dict[str, Any]:
    """Return the fields of a state, as what JSON can carry.

    Args:
        owner: whose attributes they are.
        kinds: the kind of each field, by its name.
        attributes: for each field that is no attribute of its own name, the attribute.
    """
    named = attributes or {}
    return {name: kind.save(getattr(owner, named.get(name, name))) for name, kind in kinds.items()}


def load_fields(
    device: str,
    kinds: Mapping[str, Kind],
    state: object,
    *,
    version: int | None = None,
    others: Collection[str] | None = None,
) -> dict[str, Any]:
    """Return the fields of a state, each checked.

    Args:
        device: the name of what the state is for.
        kinds: the kind of each field, by its name.
        state: what was saved, or claims to be.
        version: what the state has to say beside the name of the device; None where it is a part of another state, and
            says neither.
        others: what else may be in the state; None is anything.

    Raises:
        DeviceStateError: it is no such state, a field is not there or not of its kind, or there is one too many.
    """
    if not isinstance(state, dict):
        raise DeviceStateError(device, f"it is {type(state).__name__}, not a dictionary")
    if version is not None:
        if state.get("device") != device:
            raise DeviceStateError(device, f"it says device {show(state.get('device'))}")
        if type(state.get("version")) is not int or state["version"] != version:
            raise DeviceStateError(device, f"it says version {show(state.get('version'))}, known is {version}")
        others = None if others is None else {"device", "version", *others}
    if others is not None and (unknown := set(state) - set(kinds) - set(others)):
        names = ", ".join([name[:SHOWN_TEXT] if isinstance(name, str) else show(name) for name in _few(unknown)])
        raise DeviceStateError(device, f"it has {len(unknown)} fields that are not known: {names}")
    fields = {}
    for name, kind in kinds.items():
        if name not in state:
            raise DeviceStateError(device, f"it has no {name}")
        try:
            fields[name] = kind.load(state[name])
        except (ValueError, TypeError, OverflowError) as error:
            raise DeviceStateError(device, f"{name}: {error}") from None
        except DeviceStateError as error:
            raise DeviceStateError(device, f"{name}: {error.reason}") from None
    return fields


def _few(names: Collection[object]) -> list[object]:
    """Return some of many, the same for the same names."""
    return sorted(names, key=str)[:SHOWN_NAMES] if len(names) <= 1000 else list(names)[:SHOWN_NAMES]


class _NoLock:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


NO_LOCK = _NoLock()


class Stateful:
    """A device whose state is in attributes: ``STATE`` names the fields, and says of what kind they are.

    A field is the attribute of its name with an underscore before it; where subclasses elsewhere use it, and so its
    name has none, ``STATE_ATTRIBUTES`` says which attribute it is. A subclass brings a lock where threads share the
    device, and may override what makes several fields one: `_check_fields`, `_before_save`, `_after_restore`.

    Attributes:
        lock: held while the attributes are read or set.
    """

    STATE: ClassVar[dict[str, Kind]] = {}
    STATE_VERSION: ClassVar[int] = 1
    STATE_ATTRIBUTES: ClassVar[Mapping[str, str]] = {}

    __slots__ = ()
    lock: Lock = NO_LOCK

    def _attributes(self) -> dict[str, str]:
        return {name: self.STATE_ATTRIBUTES.get(name, f"_{name}") for name in self.STATE}

    def state(self) -> dict[str, Any]:
        """Return everything the guest could notice, as what JSON can carry."""
        with self.lock:
            self._before_save()
            fields = save_fields(self, self.STATE, self._attributes())
        return {"device": type(self).__name__, "version": self.STATE_VERSION, **fields}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what a state says; a pending interrupt is raised again.

        Raises:
            DeviceStateError: it is no state of this kind of device, or of a version it does not know. Nothing changed.
        """
        fields = self.check_state(state)
        attributes = self._attributes()
        with self.lock:
            for name, value in fields.items():
                setattr(self, attributes[name], value)
            self._after_restore()

    def check_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a state, each checked; raises as `restore`."""
        fields = load_fields(type(self).__name__, self.STATE, state, version=self.STATE_VERSION, others=())
        self._check_fields(fields)
        return fields

    def _check_fields(self, fields: dict[str, Any]) -> None:
        """Refuse with `DeviceStateError` what only several fields together show to be wrong."""

    def _before_save(self) -> None:
        """Bring the attributes up to date, where they follow a clock."""

    def _after_restore(self) -> None:
        """Bring up what depends on the attributes: interrupt lines, timers, mappings."""


def save_parts(device: str, parts: Mapping[str, Any], *, version: int = 1) -> dict[str, Any]:
    """Return the state of something that is made of others, for `restore_parts`.

    Args:
        device: the name that the state bears.
        parts: what has ``state()`` and ``restore()``, by name.
        version: of the state.
    """
    return {"device": device, "version": version, "parts": {name: part.state() for name, part in parts.items()}}


def check_part(part: Any, state: Any) -> None:  # noqa: ANN401 - anything with a state
    """Raise DeviceStateError where a part would refuse its state; nothing changes.

    What has no `check_state` of its own is told from others by its restore, and taken back by `restore_parts`.
    """
    check = getattr(part, "check_state", None)
    if check is not None:
        check(state)


def check_parts(device: str, parts: Mapping[str, Any], state: Mapping[str, Any], *, version: int = 1) -> dict[str, Any]:
    """Return the state of each part, by name; arguments and errors as of `restore_parts`, and nothing changes."""
    saved: dict[str, Any] = load_fields(device, {"parts": PART}, state, version=version, others=())["parts"]
    if set(saved) != set(parts):
        raise DeviceStateError(device, f"it is not of these parts: {', '.join(parts) or 'none'}")
    for name, part in parts.items():
        check_part(part, saved[name])
    return saved


def restore_parts(device: str, parts: Mapping[str, Any], state: Mapping[str, Any], *, version: int = 1) -> None:
    """Restore everything that something is made of, or nothing.

    Args:
        device: the name that the state has to bear.
        parts: what has ``state()`` and ``restore()``, by name.
        state: with "device", "version" and "parts", a state for each, as `save_parts` made it.
        version: which the state has to have.

    Raises:
        DeviceStateError: it is of something else or of other parts, or a part refuses its own. Nothing changed.
    """
    saved = check_parts(device, parts, state, version=version)
    before = {name: part.state() for name, part in parts.items()}
    done: list[str] = []
    try:
        for name, part in parts.items():
            done.append(name)
            part.restore(saved[name])
    except BaseException:
        for name in done:
            parts[name].restore(before[name])
        raise
