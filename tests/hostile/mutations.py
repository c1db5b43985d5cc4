"""Changes to a saved state: what a file that was damaged, or written by somebody hostile, may have in any place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from random import Random

HUGE = 1 << 20000  # has more digits than Python prints


def deep(depth: int) -> Any:  # noqa: ANN401 - JSON
    """Lists in lists, as deep as no parser of ours made them."""
    inner: Any = 0
    for _ in range(depth):
        inner = [inner]
    return inner


def deep_dict(depth: int) -> Any:  # noqa: ANN401 - JSON
    inner: Any = {}
    for _ in range(depth):
        inner = {"parts": inner}
    return inner


DEEP, DEEP_DICT = deep(100_000), deep_dict(100_000)
LONG = [0] * 100_000
WIDE = dict.fromkeys(map(str, range(10_000)))
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, 2, -1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF,
    (1 << 63) - 1, 1 << 63, -(1 << 63), (1 << 64) - 1, 1 << 64, -(1 << 64), 1 << 80, HUGE, -HUGE,
    0.0, 1.0, 0.5, -1.5, 1e308, float("inf"), float("-inf"), float("nan"),
    "", "0", "1", "x", "00", "zz", "ff" * 16, " " * 8, "0 " * 64, "\0", "é", "\ud800", "٣", "0x1", "00" * 100_000,
    [], {}, [None], [[]], [{}], [[0, 0]], [[1, 1], [1, 1]], [0.0], [True], ["0"], LONG, WIDE, DEEP, DEEP_DICT,
    {"device": None}, {"": 0}, b"", b"\0", {1: 2}, {None: None}, object,
)  # fmt: skip
"""What stands in the place of something; the last ones are not even JSON."""


def mutate(state: Any, chance: Random) -> Any:  # noqa: ANN401 - JSON
    """Return a copy with one or a few things changed, somewhere."""
    for _ in range(chance.choice((1, 1, 1, 1, 2, 3))):
        state = _change(state, chance, 0)
    return state


def _change(state: Any, chance: Random, depth: int) -> Any:  # noqa: ANN401 - JSON
    # deeper things are more, so they are looked for; what was put in by an earlier change is left alone
    stays = chance.random() < 0.15 or depth > 20
    if isinstance(state, dict) and state and len(state) < 1000 and not stays:
        key = chance.choice(list(state))
        what = chance.random()
        if what < 0.04:
            return {**state, chance.choice(("more", "", "device", "version")): chance.choice(VALUES)}
        if what < 0.08:
            return {name: value for name, value in state.items() if name != key}
        if what < 0.10:
            other = chance.choice(list(state))
            return {**state, key: state[other], other: state[key]}
        return {**state, key: _change(state[key], chance, depth + 1)}
    if isinstance(state, list) and state and len(state) < 10_000 and not stays:
        at = chance.randrange(len(state))
        what = chance.random()
        if what < 0.05:
            return [*state, state[at]]
        if what < 0.10:
            return state[:at] + state[at + 1 :]
        if what < 0.12:
            return state * 3000
        return [*state[:at], _change(state[at], chance, depth + 1), *state[at + 1 :]]
    if chance.random() < 0.5:
        near = _near(state, chance)
        if near is not state:
            return near
    return chance.choice(VALUES)


def _near(value: Any, chance: Random) -> Any:  # noqa: ANN401 - JSON
    """Return something of the same kind, a little different."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int) and value.bit_length() < 1000:
        return chance.choice(
            (value + 1, value - 1, value ^ 1 << chance.randrange(64), -value, value << 1, float(value), str(value))
        )
    if isinstance(value, str) and value:
        at = chance.randrange(len(value))
        return chance.choice(
            (
                value[:at] + chance.choice("0123456789abcdefABCDEF gz\0") + value[at + 1 :],
                value[:at] + chance.choice(("ff", "00", "7f", "80")) + value[at + 2 :],
                value[:at],
                value[: at & ~1] + value[at + 2 & ~1 :],
                value + value[:2],
                value[: at & ~1] + "  " + value[(at & ~1) + 2 :],
                value.upper(),
                "f" * len(value),
                "0" * len(value),
            )
        )
    return value


def mutate_bytes(data: bytes, chance: Random) -> bytes:
    """Return bytes with some flipped, left out, doubled or set to a boundary."""
    changed = bytearray(data)
    for _ in range(chance.choice((1, 1, 2, 4))):
        if not changed:
            break
        at, what = chance.randrange(len(changed)), chance.random()
        if what < 0.4:
            changed[at] ^= 1 << chance.randrange(8)
        elif what < 0.6:
            size = chance.choice((1, 2, 4, 8))
            changed[at : at + size] = chance.choice((bytes(size), b"\xff" * size, b"\x7f" + b"\xff" * (size - 1)))
        elif what < 0.75:
            del changed[at:]
        elif what < 0.85:
            del changed[at : at + chance.choice((1, 4, 8, 24))]
        else:
            changed[at:at] = changed[at : at + chance.choice((1, 4, 8, 24, 4096))]
    return bytes(changed)
