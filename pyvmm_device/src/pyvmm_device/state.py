"""Saved state: what every device answers to `state()` and takes in `restore()`.

A state is a dictionary of numbers, booleans, strings and lists of these, so that it goes through JSON, with the
device's name and a version. `restore` looks at everything before it changes anything: a state from another device,
another version or a hostile file is a `DeviceStateError`, and the device is as it was.
"""

from __future__ import annotations

from pyvmm_device.errors import DeviceStateError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType
    from typing import Any, ClassVar, Protocol

    class Lock(Protocol):
        """A lock as `_thread.allocate_lock` makes it, or none (`NO_LOCK`)."""

        def __enter__(self) -> object: ...
        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /
        ) -> object: ...


class Kind:
    """How one field is written, and what is accepted back."""

    __slots__ = ("load", "name", "save")

    def __init__(self, name: str, save: Callable[[Any], object], load: Callable[[Any], Any]) -> None:
        self.name = name
        self.save = save
        self.load = load


def uint(bits: int) -> Kind:
    """A number of 0 to 2**bits - 1."""

    def load(value: object) -> int:
        if type(value) is not int or not 0 <= value < 1 << bits:
            raise ValueError(f"{value!r} is no number of {bits} bits")
        return value

    return Kind(f"{bits} bits", _same, load)


def number(least: int, most: int) -> Kind:
    """A number from one to another, both included."""

    def load(value: object) -> int:
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"{value!r} is no number of {least} to {most}")
        return value

    return Kind(f"{least} to {most}", _same, load)


def sint(bits: int = 64) -> Kind:
    """A number with a sign."""

    def load(value: object) -> int:
        if type(value) is not int or not -(1 << (bits - 1)) <= value < 1 << (bits - 1):
            raise ValueError(f"{value!r} is no signed number of {bits} bits")
        return value

    return Kind(f"{bits} bits with a sign", _same, load)


def choice(*values: object) -> Kind:
    """One of some values."""

    def load(value: object) -> object:
        if value not in values or isinstance(value, bool) != any(v is value for v in (True, False)):
            raise ValueError(f"{value!r} is none of {values}")
        return value

    return Kind("a choice", _same, load)


def blob(least: int, most: int | None = None) -> Kind:
    """Bytes of a length (or from one to another), written in hexadecimal."""

    def load(value: object) -> bytearray:
        if not isinstance(value, str) or not least * 2 <= len(value) <= (least if most is None else most) * 2:
            raise ValueError("it has not the right length")
        return bytearray.fromhex(value)

    return Kind("bytes", lambda value: bytes(value).hex(), load)


def optional(kind: Kind) -> Kind:
    """The same, or None."""
    return Kind(
        f"{kind.name} or None",
        lambda value: None if value is None else kind.save(value),
        lambda value: None if value is None else kind.load(value),
    )


def array(kind: Kind, most: int, least: int = 0) -> Kind:
    """A list of so many."""

    def load(values: object) -> list[object]:
        if not isinstance(values, list) or not least <= len(values) <= most:
            raise ValueError(f"it is no list of {least} to {most}")
        return [kind.load(value) for value in values]

    return Kind(f"a list, each {kind.name}", lambda values: [kind.save(value) for value in values], load)


def nested(make: Callable[[], Any]) -> Kind:
    """A part with a state of its own, which is made anew from it."""

    def load(value: Any) -> Any:  # noqa: ANN401 (whatever is made)
        part = make()
        part.restore(value)
        return part

    return Kind("a state", lambda part: part.state(), load)


def _same(value: object) -> object:
    return value


def _load_flag(value: object) -> bool:
    if value is not True and value is not False:
        raise ValueError(f"{value!r} is neither true nor false")
    return value


FLAG = Kind("true or false", _same, _load_flag)


class _NoLock:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


NO_LOCK = _NoLock()


class Stateful:
    """A device whose state is in attributes: ``STATE`` names them, without their underscore, and says what they are."""

    STATE: ClassVar[dict[str, Kind]] = {}
    STATE_VERSION: ClassVar[int] = 1

    __slots__ = ()
    _lock: Lock = NO_LOCK

    def state(self) -> dict[str, Any]:
        """Return everything the guest could notice, as what JSON can carry."""
        with self._lock:
            self._before_save()
            fields = {name: kind.save(getattr(self, "_" + name)) for name, kind in self.STATE.items()}
        return {"device": type(self).__name__, "version": self.STATE_VERSION, **fields}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what a state says; a pending interrupt is raised again.

        Raises:
            DeviceStateError: it is no state of this kind of device, or of a version it does not know. Nothing changed.
        """
        fields = self.check_state(state)
        with self._lock:
            for name, value in fields.items():
                setattr(self, "_" + name, value)
            self._after_restore()

    def check_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a state, each checked; raises as `restore`."""
        name = type(self).__name__
        if not isinstance(state, dict):
            raise DeviceStateError(name, f"it is {type(state).__name__}, not a dictionary")
        if state.get("device") != name:
            raise DeviceStateError(name, f"it says device {state.get('device')!r}")
        if state.get("version") != self.STATE_VERSION:
            raise DeviceStateError(name, f"it says version {state.get('version')!r}, known is {self.STATE_VERSION}")
        if unknown := set(state) - set(self.STATE) - {"device", "version"}:
            raise DeviceStateError(name, f"it has fields that are not known: {', '.join(sorted(map(str, unknown)))}")
        fields = {}
        for field, kind in self.STATE.items():
            if field not in state:
                raise DeviceStateError(name, f"it has no {field}")
            try:
                fields[field] = kind.load(state[field])
            except ValueError as error:
                raise DeviceStateError(name, f"{field}: {error}") from None
        self._check_fields(fields)
        return fields

    def _check_fields(self, fields: dict[str, Any]) -> None:
        """Refuse with `DeviceStateError` what only several fields together show to be wrong."""

    def _before_save(self) -> None:
        """Bring the attributes up to date, where they follow a clock."""

    def _after_restore(self) -> None:
        """Bring up what depends on the attributes: interrupt lines, timers, mappings."""


def restore_parts(device: str, parts: Mapping[str, Any], state: Mapping[str, Any]) -> None:
    """Restore everything that something is made of, or nothing.

    Args:
        device: the name that the state has to bear.
        parts: what has ``state()`` and ``restore()``, by name.
        state: with "device", "version" 1 and "parts", a state for each.

    Raises:
        DeviceStateError: it is of something else or of other parts, or a part refuses its own. Nothing changed.
    """
    if not isinstance(state, dict) or state.get("device") != device or state.get("version") != 1:
        raise DeviceStateError(device, f"it is not of {device}, version 1")
    saved = state.get("parts")
    if not isinstance(saved, dict) or set(saved) != set(parts) or len(state) != 3:
        raise DeviceStateError(device, f"it is not of these parts: {', '.join(parts) or 'none'}")
    before = {name: part.state() for name, part in parts.items()}
    try:
        for name, part in parts.items():
            part.restore(saved[name])
    except BaseException:
        for name, part in parts.items():
            part.restore(before[name])
        raise
