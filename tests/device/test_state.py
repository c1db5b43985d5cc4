"""Fields and parts of saved states, and what their loading refuses."""

import pytest

from pyvmm_device import DeviceStateError, Ram, Register, RegisterDevice
from pyvmm_device.interrupt import SharedLine
from pyvmm_device.state import FLAG, PART, Stateful, array, load_fields, restore_parts, save_fields, save_parts, uint

KINDS = {"count": uint(8), "on": FLAG, "inner": PART, "list": array(uint(4), 2)}
GOOD = {"count": 255, "on": True, "inner": {"anything": None}, "list": [15]}


class Base(Stateful):
    STATE = {"count": uint(8), "own": FLAG}
    STATE_ATTRIBUTES = {"count": "turns"}

    def __init__(self) -> None:
        self.turns = 3
        self._own = True


def test_fields_go_there_and_back() -> None:
    assert load_fields("Thing", KINDS, GOOD) == GOOD
    assert load_fields("Thing", KINDS, {**GOOD, "more": 1}) == GOOD
    whole = {"device": "Thing", "version": 2, "more": 1, **GOOD}
    assert load_fields("Thing", KINDS, whole, version=2, others=["more"]) == GOOD
    assert load_fields("Thing", {}, {}, others=()) == {}


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        (None, "NoneType, not a dictionary"),
        ([], "list, not a dictionary"),
        ({**GOOD, "count": 256}, "count: 256 is no number of 8 bits"),
        ({**GOOD, "on": 1}, "on: 1 is neither true nor false"),
        ({**GOOD, "inner": []}, "inner: it is list"),
        ({**GOOD, "list": [16]}, "list: 16"),
        ({name: value for name, value in GOOD.items() if name != "on"}, "no on"),
        ({**GOOD, "more": 1}, "not known: more"),
    ],
)
def test_what_does_not_fit_is_refused(state: object, reason: str) -> None:
    with pytest.raises(DeviceStateError, match=reason):
        load_fields("Thing", KINDS, state, others=())


def test_a_state_says_whose_it_is() -> None:
    for state in ({}, {"device": "Other", "version": 1}, {"device": "Thing", "version": 2}, {"device": "Thing"}):
        with pytest.raises(DeviceStateError, match="it says"):
            load_fields("Thing", {}, state, version=1)


def test_an_attribute_may_have_a_name_of_its_own() -> None:
    thing = Base()
    assert save_fields(thing, {"turns": uint(8)}) == {"turns": 3}
    saved = thing.state()
    assert saved == {"device": "Base", "version": 1, "count": 3, "own": True}
    thing.restore({**saved, "count": 7, "own": False})
    assert (thing.turns, thing._own) == (7, False)


def test_parts_are_restored_together_or_not_at_all() -> None:
    parts = {"one": Ram(4), "two": Ram(4)}
    empty = save_parts("Both", parts)
    for part in parts.values():
        part.write(0, memoryview(b"abcd"))
    full = save_parts("Both", parts)
    restore_parts("Both", parts, empty)
    assert save_parts("Both", parts) == empty
    bad = {**full, "parts": {**full["parts"], "two": {}}}
    for state in (bad, {**full, "version": 2}, {**full, "parts": {}}, {**full, "more": 1}):
        with pytest.raises(DeviceStateError):
            restore_parts("Both", parts, state)
        assert save_parts("Both", parts) == empty


def test_a_register_has_a_name_of_its_own() -> None:
    with pytest.raises(TypeError, match="every device has a 'lock'"):
        type("Watchdog", (RegisterDevice,), {"lock": Register(0xC00)})


def test_a_shared_edge_is_sent_when_the_first_asserts() -> None:
    edges: list[str] = []

    class Edge:
        def trigger(self) -> None:
            edges.append("edge")

    line = SharedLine(Edge())
    one, other = line.attach(), line.attach()
    one.assert_()
    other.assert_()
    one.clear()
    assert (edges, line.active) == (["edge"], True)
    other.clear()
    other.assert_()
    assert edges == ["edge", "edge"]
    assert repr(line) == "<SharedLine up, held by 1>"
