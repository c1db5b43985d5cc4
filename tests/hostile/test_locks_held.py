"""Whoever a device calls finds its lock free; and threads that move a machine's parts about never stand still."""

import inspect
import os
import random
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from importlib import import_module
from queue import SimpleQueue
from typing import Any

import pytest
from source import modules
from tests.device.test_conformance import DEVICES, Case, Output, do
from tests.device.test_pci import Line, Machine

from pyvmm_device import (
    BusRange,
    Composite,
    EventFdLevelInterrupt,
    FanOut,
    IoManager,
    ManualClock,
    MessageGroup,
    MsiIrqConfig,
    PciBridge,
    PcieRootPort,
    PciFunction,
    PciRoot,
    Ram,
    SharedLine,
    Window,
)
from pyvmm_device.bus import Bus
from pyvmm_device.state import Stateful

PATIENCE = 20


class Prober:
    """Another thread, which uses a device while that one calls out."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[tuple[Callable[[], object], threading.Event] | None] = SimpleQueue()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self) -> None:
        while (job := self.jobs.get()) is not None:
            job[0]()
            job[1].set()

    def can(self, function: Callable[[], object]) -> bool:
        """Whether a call ends, made by the other thread while this one waits where it is."""
        done = threading.Event()
        self.jobs.put((function, done))
        return done.wait(PATIENCE)


class Events(list[object]):
    """Takes what a device says to the outside, which is where another thread looks whether its lock is free."""

    def __init__(self, output: "Asking") -> None:
        super().__init__()
        self.output = output

    def append(self, event: object) -> None:
        super().append(event)
        self.output.ask()


class Asking(Output):
    def __init__(self, prober: Prober) -> None:
        self.events: list[object] = Events(self)
        self.prober = prober
        self.device: Any = None
        self.asked = 0
        self.asking = False

    def ask(self) -> None:
        if self.device is None or self.asking or self.asked > 200:
            return
        self.asking = True
        self.asked += 1
        assert self.prober.can(lambda: self.device.read(0, memoryview(bytearray(1)))), "its lock was held"
        self.asking = False


@pytest.fixture(scope="module")
def prober() -> Iterator[Prober]:
    prober = Prober()
    yield prober
    prober.jobs.put(None)


@pytest.mark.parametrize("case", list(DEVICES.values()), ids=list(DEVICES))
def test_whoever_a_device_calls_finds_its_lock_free(case: Case, prober: Prober) -> None:
    chance, clock, output = random.Random(4), ManualClock(), Asking(prober)
    device = output.device = case.make(output, clock)
    saved = device.state()
    for _ in range(1500):
        what = chance.choice((0, 1, 1, 2, 3))
        value = chance.choice((0, 0xFF, 0xFFFFFFFF, chance.getrandbits(8), chance.getrandbits(32)))
        do(case, device, clock, (what, chance.randrange(1 << 16), chance.choice((1, 1, 2, 4)), value))
    device.restore(saved)
    device.reset()
    assert not output.asking  # where it is, an assertion failed in a call of an outbox, which only counts it


def stateful_classes() -> set[type[Stateful]]:
    """Every class of pyvmm_device with a state and, so, perhaps a lock."""
    found: set[type[Stateful]] = set()
    for name in modules():
        if name.startswith("pyvmm_device") and not name.endswith("__main__"):
            for _, kind in inspect.getmembers(import_module(name), inspect.isclass):
                if issubclass(kind, Stateful) and kind.__module__ == name and not inspect.isabstract(kind):
                    found.add(kind)
    return found


def reached(device: object, seen: dict[int, object]) -> None:
    """Every object of ours that a device is made of."""
    if id(device) in seen or not type(device).__module__.startswith(("pyvmm_device", "tests.")):
        return
    seen[id(device)] = device
    slots = [name for kind in type(device).__mro__ for name in getattr(kind, "__slots__", ())]
    held = [*getattr(device, "__dict__", {}).values(), *(getattr(device, name, None) for name in slots)]
    for one in held:
        several = list(one.values()) if isinstance(one, dict) else one if isinstance(one, (list, tuple, set)) else [one]
        for part in several:
            reached(getattr(part, "__self__", part), seen)


BASES = {"AmbaDevice", "PortDevice", "RegisterDevice", "Stateful", "PciFunction"}
ELSEWHERE = {"EventFdGroup", "LegacyGroup"}
"""Interrupts in other forms than the devices of the table are given; see below."""


def test_every_class_with_a_state_is_attacked() -> None:
    seen: dict[int, object] = {}
    for case in DEVICES.values():
        reached(case.make(Output(), ManualClock()), seen)
    attacked = {kind.__name__ for one in seen.values() for kind in type(one).__mro__}
    assert {kind.__name__ for kind in stateful_classes()} - attacked - BASES - ELSEWHERE == set()


# several threads


def run_beside(*works: Callable[[], object], rounds: int = 300) -> None:
    """Do each of these so often, each in a thread of its own, and none of them stands still or fails."""
    before = sys.getswitchinterval()
    failed: list[BaseException] = []

    def repeat(work: Callable[[], object]) -> None:
        try:
            for _ in range(rounds):
                work()
        except BaseException as error:  # noqa: BLE001 - for the test, not for this thread
            failed.append(error)

    threads = [threading.Thread(target=repeat, args=(work,), daemon=True) for work in works]
    sys.setswitchinterval(1e-5)
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert not [thread for thread in threads if thread.is_alive()], "they stand still"
    finally:
        sys.setswitchinterval(before)
    assert failed == []


class Board:
    """Bridges behind a bridge, functions on each bus, and a slot; written to through ECAM as a guest does."""

    ECAM = 0xE0000000

    def __init__(self) -> None:
        self.io = IoManager()
        self.lines = [Line() for _ in range(4)]
        self.root = PciRoot(self.io, self.lines, ecam=self.ECAM, buses=4)
        self.bridge, self.inner, self.port = PciBridge(self.io), PciBridge(self.io), PcieRootPort(self.io, 1)
        self.functions = [self.function() for _ in range(3)]
        self.root.add(self.bridge, 1)
        assert self.bridge.secondary is not None
        assert self.inner.secondary is not None
        self.bridge.secondary.add(self.inner, 1)
        self.root.add(self.port, 2)
        self.root.add(self.functions[0], 3)
        self.bridge.secondary.add(self.functions[1], 2)
        self.inner.secondary.add(self.functions[2], 0)
        for place, buses in ((1 << 15, (0, 1, 2)), (1 << 20 | 1 << 15, (1, 2, 2)), (2 << 15, (0, 3, 3))):
            self.put(place + 0x18, bytes(buses))
            self.put(place + 0x20, b"\x00\xd0\xf0\xdf")
            self.put(place + 4, b"\x07\x00")
        self.places = [3 << 15, 1 << 20 | 2 << 15, 2 << 20]

    def function(self) -> PciFunction:
        function = PciFunction(0x1234, 1, 0xFF0000, interrupt_pin=1)
        function.add_bar(0, 0x1000, Ram(0x1000))
        function.add_msix(MessageGroup(2, lambda message: None), 1)
        return function

    def put(self, at: int, data: bytes) -> None:
        self.io.mmio_write(self.ECAM + at, memoryview(data))

    def settle(self) -> None:
        """Bring everything to one known end."""
        for function, place in zip(self.functions, self.places, strict=True):
            function.set_intx(False)
            self.put(place + 4, b"\x00\x00")


def test_bridges_beside_what_is_behind_them() -> None:
    board, chance = Board(), random.Random(5)

    def command(place: int, *values: bytes) -> Callable[[], None]:
        def write() -> None:
            for value in values:
                board.put(place + 4, value)

        return write

    run_beside(
        command(1 << 15, b"\x00\x00", b"\x07\x00"),
        command(1 << 20 | 1 << 15, b"\x00\x00", b"\x07\x00"),
        *(command(place, b"\x00\x04", b"\x07\x00") for place in board.places),
        *(lambda function=function: function.set_intx(chance.random() < 0.5) for function in board.functions),
    )
    board.settle()
    assert [line.active for line in board.lines] == [False] * 4
    for function, place in zip(board.functions, board.places, strict=True):
        board.put(place + 0x10, b"\x00\x00\x00\xd0")
        board.put(place + 4, b"\x02\x00")
        assert function.bars[0].mapped == BusRange(0xD0000000, 0x1000)
        board.put(place + 4, b"\x00\x00")


def test_bus_resets_ejections_restores_and_configuration_side_by_side() -> None:
    board = Board()
    saved = board.root.bus.state()
    function = board.functions[2]
    ends = threading.local()

    def eject() -> None:
        if board.port.device is None:
            board.port.insert(PciFunction(7, 8, 9))
        board.port.request_eject()
        at = (2 << 15) + board.port.config.capabilities()[0][1] + 0x18
        board.put(at, b"\x00\x04")
        board.put(at, b"\x00\x00")

    def restore() -> None:
        board.bridge.secondary.restore(board.bridge.secondary.state())  # type: ignore[union-attr]

    def interrupt() -> None:
        function.set_intx(True)
        function.interrupt(1)
        function.set_intx(False)

    def move() -> None:
        ends.at = (getattr(ends, "at", 0) + 1) % 4
        for place in board.places:
            board.put(place + 0x10, bytes((0, ends.at << 4, 0, 0xD0)))

    def reset_behind() -> None:
        board.put((1 << 15) + 0x3E, b"\x40\x00")
        board.put((1 << 15) + 0x3E, b"\x00\x00")

    run_beside(eject, restore, interrupt, move, move, reset_behind, board.root.bus.state, rounds=100)
    if board.port.device is not None:
        board.port.secondary.remove(0)  # type: ignore[union-attr]
    board.root.bus.restore(saved)
    board.settle()
    assert [line.active for line in board.lines] == [False] * 4


def test_ranges_end_where_the_registers_say() -> None:
    """Several threads move the same BARs, over each other too; whatever they did, the bus says what the BARs hold."""
    machine, functions = Machine(), [PciFunction(1, 2, 0xFF0000) for _ in range(3)]
    for slot, function in enumerate(functions, 1):
        for index in range(3):
            function.add_bar(index, 0x1000, Ram(0x1000))
        machine.root.add(function, slot)
        function.config_write(4, memoryview(b"\x02\x00"))
    chances = [random.Random(number) for number in range(4)]

    def move(chance: random.Random) -> None:
        function = chance.choice(functions)
        at = 0xD0000000 + chance.randrange(4) * 0x1000
        function.config_write(0x10 + 4 * chance.randrange(3), memoryview(at.to_bytes(4, "little")))
        if chance.random() < 0.1:
            function.config_write(4, memoryview(chance.choice((b"\x00\x00", b"\x02\x00"))))

    run_beside(*(lambda chance=chance: move(chance) for chance in chances))
    bars = [bar for function in functions for bar in function.bars.values()]
    answering = dict(machine.io.mmio)
    for bar in bars:
        wanted = bar.wanted()
        if wanted is None:
            assert (bar.mapped, bar.conflict) == (None, None)
        elif bar.mapped is None:  # somebody else has an address of it, now
            assert any(wanted.overlaps(at) and device is bar.conflict for at, device in answering.items())
        else:
            assert (bar.mapped, answering[wanted]) == (wanted, bar.device)
    for bar in bars:  # and when all are apart, all answer
        bar.address = 0xD0000000 + bars.index(bar) * 0x1000
    for function in functions:
        function.config_write(4, memoryview(b"\x02\x00"))
    assert all(bar.mapped == bar.wanted() for bar in bars)


def test_a_level_settles_to_what_was_wanted_last() -> None:
    line, other = Line(), Line()
    shared = SharedLine(FanOut(line, other))
    inputs = [shared.attach() for _ in range(4)]

    def toggle(number: int) -> None:
        inputs[number].assert_()
        inputs[number].clear()

    run_beside(*(lambda number=number: toggle(number) for number in range(4)))
    assert (line.active, other.active, shared.active) == (False, False, False)


def test_the_end_of_an_interrupt_loses_no_assertion() -> None:
    """A device that asserts while the loop takes the end of the last interrupt has its line raised."""
    raised = [0]
    with EventFdLevelInterrupt() as line:
        os.set_blocking(line.fileno(), False)

        def device() -> None:
            line.clear()
            line.assert_()

        def loop() -> None:
            with suppress(BlockingIOError):
                raised[0] += os.eventfd_read(line.fileno())  # as KVM takes it, and the guest ends it
            os.eventfd_write(line.resample_fd(), 1)
            line.on_resample()

        run_beside(device, loop)
        with suppress(BlockingIOError):
            os.eventfd_read(line.fileno())
        line.assert_()
        os.eventfd_write(line.resample_fd(), 1)
        line.on_resample()
        assert os.eventfd_read(line.fileno()) >= 1


# a range that waits gets its addresses whenever they become free


FREED: dict[str, Callable[[Bus, Machine], object]] = {
    "the register of the other": lambda bus, machine: machine.put(1, 0x10, 0xD8000000),
    "its command register": lambda bus, machine: machine.put(1, 4, 0, 2),
    "its removal": lambda bus, machine: machine.root.bus.remove(1),
    "its reset": lambda bus, machine: machine.root.bus.get(1).reset(),  # type: ignore[union-attr]
    "its restore": lambda bus, machine: machine.root.bus.get(1).restore(machine.before),  # type: ignore[union-attr, attr-defined]
    "deregister": lambda bus, machine: bus.deregister(0xD0000000),
    "update": lambda bus, machine: bus.update(remove=(0xD0000000,)),
}


@pytest.mark.parametrize("free", list(FREED.values()), ids=list(FREED))
@pytest.mark.parametrize("offset", [0, 0x1000])
def test_conflicts_are_settled_whenever_a_range_goes_away(free: Callable[[Bus, Machine], object], offset: int) -> None:
    machine = Machine()
    one, other = (PciFunction(1, 2, 0xFF0000) for _ in range(2))
    one.add_bar(0, 0x2000, Ram(0x2000))
    bar = other.add_bar(0, 0x1000, Ram(0x1000))
    machine.root.add(one, 1)
    machine.root.add(other, 2)
    machine.before = one.state()  # type: ignore[attr-defined]
    for slot, at in ((1, 0xD0000000), (2, 0xD0000000 + offset)):
        machine.put(slot, 0x10, at)
        machine.put(slot, 4, 2, 2)
    assert (bar.mapped, bar.conflict) == (None, one.bars[0].device)
    free(machine.io.mmio, machine)
    assert (bar.mapped, bar.conflict) == (BusRange(0xD0000000 + offset, 0x1000), None)
    assert machine.io.mmio.device(0xD0000000 + offset) == (bar.mapped, bar.device)


def test_a_bar_over_a_device_of_the_machine_waits_for_it() -> None:
    machine, ram = Machine(), Ram(0x1000)
    machine.io.register_mmio(ram, BusRange(0xFEC00000, 0x1000))
    function = PciFunction(1, 2, 0xFF0000)
    bar = function.add_bar(0, 0x1000, Ram(0x1000))
    machine.root.add(function, 1)
    machine.put(1, 0x10, 0xFEC00000)
    machine.put(1, 4, 2, 2)
    assert bar.conflict is ram
    machine.io.deregister_mmio(0xFEC00000)
    assert bar.mapped is not None


def test_the_upper_halves_of_a_bridge_s_window_move_what_is_behind_it() -> None:
    board = Board()
    function = PciFunction(1, 2, 0xFF0000)
    bar = function.add_bar(0, 0x1000, Ram(0x1000), wide=True, prefetchable=True)
    assert board.bridge.secondary is not None
    board.bridge.secondary.add(function, 5)
    place = 1 << 20 | 5 << 15
    board.put(place + 0x10, b"\x00\x00\x00\x10")
    board.put(place + 0x14, b"\x01\x00\x00\x00")
    board.put(place + 4, b"\x02\x00")
    board.put((1 << 15) + 0x24, b"\x00\x10\x00\x10")
    assert bar.mapped is None
    board.put((1 << 15) + 0x28, b"\x01\x00\x00\x00")
    board.put((1 << 15) + 0x2C, b"\x01\x00\x00\x00")  # as Linux does last
    assert bar.mapped == BusRange(0x1_1000_0000, 0x1000)


def test_messages_say_the_bus_that_the_guest_numbered() -> None:
    board, sent = Board(), list[MsiIrqConfig]()
    function = PciFunction(1, 2, 0xFF0000)
    group = MessageGroup(1, sent.append)
    msi = function.add_msi(group)
    assert board.bridge.secondary is not None
    board.bridge.secondary.add(function, 6)
    board.put((1 << 20 | 6 << 15) + msi.offset + 2, b"\x01\x00")
    group.trigger(0)
    board.put((1 << 15) + 0x19, b"\x02")
    group.trigger(0)
    assert [message.devid for message in sent] == [1 << 8 | 6 << 3, 2 << 8 | 6 << 3]


# a device that returns what it should fill in


class Mistaken:
    def __len__(self) -> int:
        return 8

    def read(self, offset: int, buffer: memoryview) -> int:
        return 0x42

    def write(self, offset: int, data: memoryview) -> None:
        pass


@pytest.mark.parametrize("place", ["pio", "mmio", "composite", "window", "traced"])
def test_a_read_that_returns_something_is_noticed_once(place: str, caplog: pytest.LogCaptureFixture) -> None:
    io, mistaken, buffer = IoManager(), Mistaken(), memoryview(bytearray(1))
    device: Any = mistaken
    if place == "composite":
        device = Composite(8, {0: mistaken})  # type: ignore[dict-item]
    elif place == "window":
        device = Window(mistaken, 0)  # type: ignore[arg-type]
    io.register_pio(device, BusRange(0x600, 8))
    io.register_mmio(device, BusRange(0x600, 8))
    if place == "traced":
        io.trace(lambda access: None)
    for _ in range(3):
        (io.mmio_read if place == "mmio" else io.pio_read)(0x600, buffer)
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert "read returned 66" in caplog.text
    bus = device.parts if isinstance(device, Composite) else io.mmio if place == "mmio" else io.pio
    assert bus.mistakes == {"Window" if place == "window" else "Mistaken": 3}
