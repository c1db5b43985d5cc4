"""A saved state may come from anywhere: whatever is in it, it is taken or refused by a typed error, whole.

Every class with a state is found in the code and attacked. PYVMM_STATE_MUTATIONS says how many states all of it takes
together: a few thousand by default, a million with ``--slow``.
"""

from __future__ import annotations

import os
import signal
from contextlib import closing
from random import Random
from typing import TYPE_CHECKING, Any

import pytest
from tests.hostile import stateful_bytes
from tests.hostile.mutations import VALUES, mutate
from tests.hostile.stateful import ABSTRACT, INSIDE, MAKERS, REFUSAL, SUBJECTS, Subject, classes
from tests.kvm.guests import MACHINE

from pyvmm_device.state import NO_LOCK, show

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MUTATIONS = int(os.environ.get("PYVMM_STATE_MUTATIONS", "5000"))
LONG = 1_000_000
PATIENCE = 10
"""Seconds for one state, and far too many: what takes longer is no slow machine."""

every_subject = pytest.mark.parametrize("make", [make for *_, make in SUBJECTS], ids=[name for name, *_ in SUBJECTS])


class Hung(Exception):
    """A state took longer than anybody waits."""


@pytest.fixture
def watchdog() -> Iterator[Callable[[], None]]:
    """Returns what winds up an alarm, which ends whatever hangs."""

    def hung(*_: object) -> None:
        raise Hung

    before = signal.signal(signal.SIGALRM, hung)

    def wind_up() -> None:
        signal.alarm(PATIENCE)

    yield wind_up
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def test_every_class_with_a_state_is_attacked() -> None:
    known = set(MAKERS) | ABSTRACT | set(INSIDE) | set(stateful_bytes.MAKERS)
    found = set(classes())
    assert not found - known, "give it a maker in tests/hostile/stateful.py or stateful_bytes.py"
    assert not known - found, "these have no state any more"
    assert set(INSIDE.values()) <= set(MAKERS)


@every_subject
def test_a_state_is_taken_back(make: Callable[[], Subject]) -> None:
    with closing(make()) as subject:
        saved = subject.state()
        subject.restore(saved)
        assert subject.state() == saved
        subject.use(Random(0))


def attack(subject: Subject, count: int, seed: object, wind_up: Callable[[], None]) -> int:
    """Give a subject so many hostile states; return how many it refused."""
    chance, saved, refused, longest = Random(f"{seed}"), subject.state(), 0, 0
    for _ in range(count):
        wrong = mutate(saved, chance)
        resets = len(subject.resets)
        wind_up()
        try:
            subject.restore(wrong)
        except REFUSAL as error:
            refused += 1
            longest = max(longest, len(str(error)))
            assert len(subject.resets) == resets, "it was reset for a state that it refused"
            # what was refused left no trace
            assert subject.state() == saved
        else:
            # what was accepted is a state, and the device works with it
            again = subject.state()
            subject.use(chance)
            subject.restore(again)
            subject.restore(saved)
            assert subject.state() == saved
    assert longest < 4000, "a message has a bound"
    return refused


@every_subject
def test_hostile_states(make: Callable[[], Subject], watchdog: Callable[[], None]) -> None:
    count = MUTATIONS // len(SUBJECTS)
    with closing(make()) as subject:
        refused = attack(subject, count, "short", watchdog)
    assert refused > count // 10, "hardly anything was wrong with them"


@every_subject
def test_what_is_no_state_at_all(make: Callable[[], Subject], watchdog: Callable[[], None]) -> None:
    with closing(make()) as subject:
        saved = subject.state()
        for wrong in VALUES:
            watchdog()
            try:
                subject.restore(wrong)
            except REFUSAL:
                assert subject.state() == saved
            else:
                # a port without anything to say has an empty state
                assert wrong == {} or (isinstance(wrong, dict) and set(wrong) <= set(saved)), show(wrong)


def attack_bytes(subject: stateful_bytes.BytesSubject, count: int, seed: object, wind_up: Callable[[], None]) -> int:
    """Give a subject so many states that somebody changed; return how many it refused."""
    chance, refused, changed = Random(f"{seed}"), 0, list[str]()
    for number in range(count):
        wrong = subject.wrong(chance)
        before = subject.seen()
        wind_up()
        try:
            subject.restore(wrong)
        except subject.refusals as error:
            refused += 1
            if isinstance(error, subject.complete) and subject.seen() != before:
                changed.append(f"mutation {number} changed something: {error}")
    assert not changed
    return refused


every_bytes_subject = pytest.mark.parametrize(
    "make",
    [
        pytest.param(make, marks=[pytest.mark.kvm] if make.__name__ in stateful_bytes.NEED_KVM else [])
        for make in stateful_bytes.MAKERS.values()
    ],
    ids=list(stateful_bytes.MAKERS),
)


@every_bytes_subject
def test_hostile_bytes(make: Callable[[], stateful_bytes.BytesSubject], watchdog: Callable[[], None]) -> None:
    count = MUTATIONS // 20
    with closing(make()) as subject:
        refused = attack_bytes(subject, count, "short", watchdog)
    with closing(make()) as another:
        another.restore(another.saved)
    assert refused > count // 10, "hardly anything was wrong with them"


@pytest.mark.slow
@every_bytes_subject
def test_many_hostile_bytes(make: Callable[[], stateful_bytes.BytesSubject], watchdog: Callable[[], None]) -> None:
    with closing(make()) as subject:
        attack_bytes(subject, LONG // 20, "long", watchdog)


@pytest.mark.slow
@every_subject
def test_a_million_states(make: Callable[[], Subject], watchdog: Callable[[], None]) -> None:
    for seed in range(10):
        with closing(make()) as subject:
            attack(subject, LONG // len(SUBJECTS) // 10, seed, watchdog)


def test_messages_have_an_end() -> None:
    assert all(len(show(value)) < 100 for value in VALUES)


def test_work_is_linear() -> None:
    """Each kind looks at each element once: counted, not timed."""
    from pyvmm_device.state import array, load_fields, uint

    looks = 0
    byte = uint(8)

    def counted(value: Any) -> int:  # noqa: ANN401 - anything
        nonlocal looks
        looks += 1
        return byte.load(value)  # type: ignore[no-any-return]

    kind = type(byte)("counted", byte.save, counted)
    for length in (1000, 10_000):
        looks = 0
        load_fields("Thing", {"list": array(kind, 1 << 20)}, {"list": [0] * length}, others=())
        assert looks == length
    assert NO_LOCK


# states whose parts are right and do not fit together


def wrong_disks(state: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """States of a disk that are of another one, or of other queues."""

    def config(at: int, data: bytes) -> dict[str, Any]:
        changed = bytearray.fromhex(state["config"])
        changed[at : at + len(data)] = data
        return {**state, "config": changed.hex()}

    def requests(*entries: tuple[int, int]) -> dict[str, Any]:
        kept = [{"queue": index, "head": head, "descriptors": [[0, 16, 0, 0]]} for index, head in entries]
        return {**state, "own": {**state["own"], "requests": kept}}

    sectors = int.from_bytes(bytes.fromhex(state["config"])[:8], "little")
    yield "larger than the disk", config(0, (sectors + 1).to_bytes(8, "little"))
    yield "of all sectors there are", config(0, b"\xff" * 8)
    yield "with another seg_max", config(12, b"\xff")
    yield "with more queues", config(34, b"\7")
    yield "with a cache mode of its own", config(32, b"\2")
    yield "with a request that nobody took", requests((0, 3))
    yield "with a request beyond the ring", requests((0, 40000))
    yield "with a request of another queue", requests((1, 0))
    yield "with a request twice", requests((0, 0), (0, 0))


def test_the_state_of_another_disk_is_refused() -> None:
    """A guest that was told of more sectors than there are would make the file longer by what it writes there."""
    with closing(MAKERS["pyvmm_virtio.devices.block.device.Block"][0]()) as subject:
        saved = subject.state()
        for name, wrong in wrong_disks(saved):
            with pytest.raises(REFUSAL):
                subject.restore(wrong)
            assert not subject.resets, name
            assert subject.state() == saved, name
        smaller = bytearray.fromhex(saved["config"])
        smaller[:8] = (1).to_bytes(8, "little")
        subject.restore({**saved, "config": smaller.hex()})  # a disk that has grown since


@pytest.mark.parametrize("name", ["net.device.Net", "console.device.Console"])
def test_a_configuration_that_no_driver_makes_is_refused(name: str) -> None:
    with closing(MAKERS[f"pyvmm_virtio.devices.{name}"][0]()) as made:
        subject: Any = made
        saved = subject.state()
        assert subject.device.fixed_config
        for part in subject.device.fixed_config:
            for at in part:
                config = bytearray.fromhex(saved["config"])
                config[at] ^= 0x40
                with pytest.raises(REFUSAL):
                    subject.restore({**saved, "config": config.hex()})
        assert not subject.resets


@pytest.mark.kvm
@pytest.mark.skipif(MACHINE != "x86_64", reason="arm64's and RISC-V's controllers are devices")
def test_controllers_stay_as_they_were_where_the_kernel_refuses_a_part(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyvmm_kvm import Kvm, KvmError, StateError, VmFd, VmState

    def refuse(vm: VmFd, clock: object) -> None:
        raise KvmError(22, "KVM_SET_CLOCK")

    with Kvm() as kvm, kvm.create_vm() as vm, kvm.create_vm() as bare:
        vm.create_irq_chip()
        vm.create_pit2()
        state = VmState.save(vm)
        chip = vm.get_irqchip(0)
        pic = chip.pic
        pic.imr ^= 0x5A
        chip.pic = pic
        changed = VmState({**state.parts, "irqchip0": bytes(chip)})
        with pytest.raises(StateError, match="this VM clock"):
            changed.restore(bare)
        with monkeypatch.context() as patched:
            patched.setattr(VmFd, "set_clock", refuse)
            with pytest.raises(KvmError):
                changed.restore(vm)
        assert bytes(vm.get_irqchip(0)) == state.parts["irqchip0"]
        changed.restore(vm)
        assert vm.get_irqchip(0).pic.imr == pic.imr
