"""What holds for every device: any access is taken, a state is the device, a reset is a new one.

``PYVMM_HOSTILE=10000000`` makes that many random accesses to each device instead of a few thousand.
"""

import json
import os
import random
import struct
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm_device import (
    I8042,
    AcpiGpe,
    AcpiMode,
    AcpiPm,
    AcpiSleep,
    BusRange,
    Cmos,
    Composite,
    DebugExit,
    DebugPort,
    DeviceStateError,
    FwCfg,
    Ioapic,
    IoManager,
    ManualClock,
    MessageGroup,
    PciBridge,
    PcieRootPort,
    PciFunction,
    PciHotplug,
    PciRoot,
    Pic,
    Pit,
    Pl011,
    Pl031,
    Plic,
    Port92,
    PostPort,
    Ps2Keyboard,
    Pvpanic,
    Ram,
    Register,
    RegisterDevice,
    ResetPort,
    Sci,
    Serial,
)
from pyvmm_device.riscv import plic

HOSTILE = int(os.environ.get("PYVMM_HOSTILE", "4000"))


class Output:
    """Counts what a device does to the world: interrupts, bytes."""

    def __init__(self) -> None:
        self.events: list[object] = []

    def trigger(self) -> None:
        self.events.append("edge")

    def assert_(self) -> None:
        self.events.append(True)

    def clear(self) -> None:
        self.events.append(False)

    def write(self, data: bytes) -> None:
        self.events.append(data)


class Saved(Protocol):
    """What every device has."""

    def read(self, offset: int, buffer: memoryview) -> None: ...
    def write(self, offset: int, data: memoryview) -> None: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...
    def reset(self) -> None: ...


class Case(NamedTuple):
    """How a device is made, how many bytes it answers at, what else may happen to it, and what a reset keeps."""

    make: Callable[[Output, ManualClock], Saved]
    size: int
    outside: Callable[[Any, int], object] = lambda device, value: None
    kept: frozenset[str] = frozenset()


class AllRegisters(RegisterDevice):
    plain = Register(0x0, reset=0x11223344)
    narrow = Register(0x4, 2, writable=0x0FF0)
    flags = Register(0x8, 1, reset=0xFF, writable=0x00, clears=0x0F)
    wide = Register(0x10, 8)


class WholeRoot:
    """A PCI root with everything on it, reached as a guest does: 0xcf8 to 0xcff, then ECAM, then the MMIO window."""

    WINDOW, ECAM, WINDOW_SIZE = 0x10000000, 0xE0000000, 0x4000

    def __init__(self, output: Output, clock: ManualClock) -> None:
        self.io = IoManager()
        self.root = PciRoot(self.io, [output] * 4, ecam=self.ECAM, buses=2)
        function = PciFunction(1, 2, 3, interrupt_pin=1)
        function.add_bar(0, 0x1000, Ram(0x1000))
        function.add_bar(1, 0x1000, Composite(0x1000, {0: Ram(16), 0x20: Ram(4)}))
        function.add_msi(MessageGroup(4, output.events.append))
        function.add_msix(MessageGroup(3, output.events.append), 2)
        self.function = function
        bridge = PciBridge(self.io)
        self.root.add(function, 1)
        self.root.add(bridge, 2)
        assert bridge.secondary is not None
        bridge.secondary.add(PciFunction(4, 5, 6, interrupt_pin=2), 3)
        port = PcieRootPort(self.io, 1)
        port.insert(PciFunction(7, 8, 9))
        self.root.add(port, 3)
        self.state, self.restore, self.reset = self.root.state, self.root.restore, self.root.reset

    def _place(self, offset: int) -> tuple[Callable[..., None], Callable[..., None], int]:
        if offset < 8:
            return self.io.pio_read, self.io.pio_write, 0xCF8 + offset
        # the first eight devices' 4 KiB each of two buses, then where BARs may lie
        if offset < 0x10000:
            bus, at = divmod(offset, 0x8000)
            return self.io.mmio_read, self.io.mmio_write, self.ECAM + (bus << 20 | (at >> 12) << 15 | at & 0x1FF)
        return self.io.mmio_read, self.io.mmio_write, self.WINDOW + offset - 0x10000

    def read(self, offset: int, buffer: memoryview) -> None:
        read, _, address = self._place(offset)
        read(address, buffer)

    def write(self, offset: int, data: memoryview) -> None:
        _, write, address = self._place(offset)
        write(address, data)


class SmallPlic:
    """A PLIC of 40 sources and two contexts, its registers closer together: what they are, and then where."""

    PLACES = (
        *map(plic.priority_at, range(41)), plic.PENDING, plic.PENDING + 4, plic.enables_at(0), plic.enables_at(0, 32),
        plic.enables_at(1), plic.enables_at(1, 32), plic.threshold_at(0), plic.claim_at(0), plic.threshold_at(1),
        plic.claim_at(1), plic.claim_at(2),
    )  # fmt: skip
    SIZE = 4 * len(PLACES)

    def __init__(self, output: Output, clock: ManualClock) -> None:
        self.plic = Plic([output.events.append] * 2, 40)
        self.state, self.restore, self.reset = self.plic.state, self.plic.restore, self.plic.reset

    def read(self, offset: int, buffer: memoryview) -> None:
        self.plic.read(self.PLACES[offset // 4] + offset % 4, buffer)

    def write(self, offset: int, data: memoryview) -> None:
        self.plic.write(self.PLACES[offset // 4] + offset % 4, data)

    def happen(self, value: int) -> None:
        source = value % 40 + 1
        self.plic.send_edge(source) if value & 64 else self.plic.set_level(source, value > 127)


class ConfigAndBar:
    """pvpanic's PCI form: its configuration space, and behind it the BAR."""

    def __init__(self, device: Pvpanic) -> None:
        self.device, self.function = device, device.pci_function()
        PciRoot(IoManager()).add(self.function, 1)
        self.state, self.restore, self.reset = self.function.state, self.function.restore, self.function.reset

    def read(self, offset: int, buffer: memoryview) -> None:
        self.function.config_read(offset, buffer) if offset < 0x100 else self.device.read(offset - 0x100, buffer)

    def write(self, offset: int, data: memoryview) -> None:
        self.function.config_write(offset, data) if offset < 0x100 else self.device.write(offset - 0x100, data)


def hotplug(output: Output, clock: ManualClock) -> PciHotplug:
    io = IoManager()
    return PciHotplug(PciRoot(io).bus, output.trigger)


def receive(serial: Serial, value: int) -> None:
    if value & 1:
        serial.enqueue(bytes(range(value & 0x3F)))
    elif value & 2:
        serial.enqueue_error(value & 0xFF, value >> 3)
    else:
        serial.set_modem_lines(cts=bool(value & 4), dsr=bool(value & 8), ri=bool(value & 16), dcd=bool(value & 32))


def assert_pin(whole: WholeRoot, value: int) -> None:
    whole.function.set_intx(bool(value & 1))
    whole.function.interrupt(value >> 1 & 1)


def set_input(ioapic: Ioapic, value: int) -> None:
    if value & 64:
        ioapic.end_of_interrupt(value)
    else:
        ioapic.set_line(value % 24, value > 127)


def i8042(output: Output, clock: ManualClock) -> I8042:
    return I8042(
        lambda: output.events.append("reset"),
        keyboard=Ps2Keyboard(),
        keyboard_interrupt=output,
        aux_interrupt=output,
        on_a20=output.events.append,
    )


def press(controller: I8042, value: int) -> None:
    keyboard = controller.keyboard
    assert isinstance(keyboard, Ps2Keyboard)
    keyboard.press(bytes([value] if value & 1 else [0xF0, value]))


class SmallMemory:
    """A page of guest memory, which raises for what lies elsewhere."""

    def __init__(self) -> None:
        self.bytes = bytearray(0x1000)

    def read_slice(self, buffer: bytearray, addr: int) -> None:
        if addr + len(buffer) > len(self.bytes):
            raise LookupError(addr)
        buffer[:] = self.bytes[addr : addr + len(buffer)]

    def write_slice(self, buffer: bytes, addr: int) -> None:
        if addr + len(buffer) > len(self.bytes):
            raise LookupError(addr)
        self.bytes[addr : addr + len(buffer)] = buffer


def fw_cfg(output: Output, clock: ManualClock) -> FwCfg:
    made = FwCfg(SmallMemory())
    made.add_file("opt/fixed", b"0123456789")
    made.add_file("opt/made", lambda: b"a callable's")
    made.add_file("opt/written", bytes(8), output.events.append)
    return made


def ask(fw_cfg: FwCfg, value: int) -> None:
    """A DMA access of the guest to one of the first items, to the page or, in part, beyond it."""
    memory = fw_cfg._memory
    assert isinstance(memory, SmallMemory)
    control = (0x20 + value % 5) << 16 | 8 | value & 0x16
    memory.write_slice(struct.pack(">IIQ", control, value & 31, value << 5), 0)
    fw_cfg.write(4, memoryview(bytes(8)))


def talk(uart: Pl011, value: int) -> None:
    if value & 1:
        uart.enqueue(bytes(range(value & 0x3F)))
    elif value & 2:
        uart.enqueue_error(value & 0xFF, value >> 3)
    else:
        uart.set_modem_lines(cts=bool(value & 4), dsr=bool(value & 8), ri=bool(value & 16), dcd=bool(value & 32))


def happen(pm: AcpiPm, value: int) -> None:
    pm.set_status(value << 8 | value & 0x31)


DEVICES = {
    "serial": Case(lambda output, clock: Serial(output, output), 8, receive),
    "ram": Case(lambda output, clock: Ram(24), 24),
    "8259s": Case(
        lambda output, clock: Pic(output.events.append), 6, lambda pic, value: pic.set_line(value & 15, value > 127)
    ),
    "8254": Case(Pit, 5),
    "cmos": Case(
        lambda output, clock: Cmos(output, clock, time=1709251199),
        2,
        lambda cmos, value: cmos.set_time(value << 24) if value > 250 else cmos.set_memory_size(value << 24),
        frozenset({"memory", "age", "epoch", "weekday"}),  # they live by a battery
    ),
    "i8042": Case(i8042, 5, press),
    "i8042 alone": Case(lambda output, clock: I8042(lambda: None), 5),
    "port 0x92": Case(lambda output, clock: Port92(lambda: None), 1),
    "pl011": Case(lambda output, clock: Pl011(output, output), 0x1000, talk),
    "pl031": Case(
        lambda output, clock: Pl031(output, clock, time=1709251199), 0x1000, kept=frozenset({"load", "age", "left"})
    ),
    "debug port": Case(lambda output, clock: DebugPort(output.write), 1),
    "post port": Case(lambda output, clock: PostPort(output.events.append), 1),
    "debug exit": Case(lambda output, clock: DebugExit(output.events.append), 4),
    "pvpanic": Case(lambda output, clock: Pvpanic(output.events.append), 1),
    "pvpanic by pci": Case(lambda output, clock: ConfigAndBar(Pvpanic(output.events.append)), 0x110),
    "ioapic": Case(lambda output, clock: Ioapic(lambda *message: output.events.append(message)), 0x44, set_input),
    "plic": Case(SmallPlic, SmallPlic.SIZE, SmallPlic.happen, frozenset({"levels", "pending"})),
    "fw_cfg": Case(fw_cfg, 12, ask),
    "acpi fixed hardware": Case(lambda output, clock: AcpiPm(Sci(output), clock, output.events.append), 12, happen),
    "acpi, timer of 24 bits": Case(lambda output, clock: AcpiPm(Sci(output), clock, wide=False), 12, happen),
    "acpi general events": Case(
        lambda output, clock: AcpiGpe(Sci(output)), 4, lambda gpe, value: gpe.trigger(value & 15)
    ),
    "acpi sleep": Case(lambda output, clock: AcpiSleep(output.events.append), 2, lambda sleep, value: sleep.wake()),
    "acpi mode": Case(lambda output, clock: AcpiMode(AcpiPm(Sci(output), clock)), 1),
    "reset port": Case(lambda output, clock: ResetPort(lambda: output.events.append("reset")), 1),
    "registers": Case(lambda output, clock: AllRegisters(), 0x18),
    "composite": Case(lambda output, clock: Composite(0x40, {0: Ram(16), 0x20: Ram(4)}), 0x40),
    "pci hotplug": Case(hotplug, 20),
    "pci root": Case(WholeRoot, 0x14000, assert_pin),
}

every_device = pytest.mark.parametrize("case", list(DEVICES.values()), ids=list(DEVICES))

# what happens (0 read, 1 write, 2 from outside, 3 time passes), where, how long, which value
STEP = st.tuples(
    st.integers(0, 3), st.integers(0, 1 << 20), st.sampled_from((1, 2, 4, 8)), st.integers(0, (1 << 64) - 1)
)


def do(case: Case, device: Saved, clock: ManualClock, step: tuple[int, int, int, int]) -> bytes:
    """One step; returns what was read."""
    what, where, length, value = step
    # small offsets and values are the interesting ones, and shall be frequent
    offset = where % (case.size if where & 1 else min(case.size, 16))
    buffer = memoryview(bytearray(value.to_bytes(8, "little")[:length]))
    if what == 0:
        device.read(offset, buffer)
        return bytes(buffer)
    if what == 1:
        device.write(offset, buffer)
    elif what == 2:
        case.outside(device, value & 0xFF)
    else:
        clock.advance(value & 0xFFFFFFF)
    return b""


@every_device
@settings(max_examples=25, deadline=None)
@given(steps=st.lists(STEP, max_size=20))
def test_a_state_is_the_device(case: Case, steps: list[tuple[int, int, int, int]]) -> None:
    twin_clock, clock = ManualClock(), ManualClock()
    twin, device = case.make(Output(), twin_clock), case.make(Output(), clock)
    for step in steps:
        assert do(case, device, clock, step) == do(case, twin, twin_clock, step)
        saved = json.loads(json.dumps(device.state()))
        device = case.make(Output(), clock)
        device.restore(saved)
        assert device.state() == twin.state()


@every_device
def test_any_access_is_taken(case: Case) -> None:
    chance, clock = random.Random(1), ManualClock()
    device = case.make(Output(), clock)
    buffers = [memoryview(bytearray(length)) for length in (1, 2, 4, 8, 3, 5, 16)]
    for _ in range(HOSTILE):
        buffer = buffers[chance.randrange(7 if chance.random() < 0.1 else 4)]
        offset = chance.randrange(case.size)
        if chance.random() < 0.5:
            device.read(offset, buffer)
        else:
            buffer[:] = chance.randbytes(len(buffer))
            device.write(offset, buffer)
        if chance.random() < 0.02:
            case.outside(device, chance.randrange(256))
            clock.advance(chance.randrange(1 << 28))


@every_device
def test_a_reset_is_a_new_device(case: Case) -> None:
    chance, clock = random.Random(2), ManualClock()
    device, new = case.make(Output(), clock), case.make(Output(), clock)
    for _ in range(200):
        device.write(chance.randrange(case.size), memoryview(chance.randbytes(chance.choice((1, 2, 4, 8)))))
    device.reset()
    after, fresh = device.state(), new.state()
    assert {name: after[name] for name in after if name not in case.kept} == {
        name: fresh[name] for name in fresh if name not in case.kept
    }


def mutations(state: Any, chance: random.Random) -> Any:  # noqa: ANN401 - any part of JSON
    """Change one thing somewhere in a state."""
    if isinstance(state, dict):
        key = chance.choice(sorted(state)) if state else "more"
        if chance.random() < 0.3 or not state:
            return {**state, "more": 1} if chance.random() < 0.5 else {k: v for k, v in state.items() if k != key}
        return {**state, key: mutations(state[key], chance)}
    if isinstance(state, list) and state and chance.random() < 0.7:
        at = chance.randrange(len(state))
        return [*state[:at], mutations(state[at], chance), *state[at + 1 :]]
    return chance.choice([None, -1, 1 << 80, "", "zz", [], {}, 3.5, "00", True, [None] * 5000])


@every_device
def test_a_hostile_state_changes_nothing(case: Case) -> None:
    chance, clock = random.Random(3), ManualClock()
    device = case.make(Output(), clock)
    saved = device.state()
    refused = 0
    for _ in range(100):
        wrong = mutations(saved, chance)
        try:
            device.restore(wrong)
        except DeviceStateError:
            refused += 1
            assert device.state() == saved
        else:
            device.restore(saved)
    assert refused > 50


@every_device
def test_on_a_bus_wide_and_crossing_accesses_are_answered(case: Case) -> None:
    io = IoManager()
    device = case.make(Output(), ManualClock())
    io.register_mmio(device, [BusRange(0x1000, case.size)])
    for length in (1, 2, 4, 8):
        buffer = memoryview(bytearray(length))
        io.mmio_read(0x1000, buffer)
        io.mmio_read(0x1000 + case.size - 1, buffer)
        io.mmio_write(0x1000 + case.size - 1, buffer)
        if length > 1:
            io.mmio_read(0x1000 + case.size - 1, buffer)
            assert bytes(buffer) == b"\xff" * length  # it leaves the range: nobody answers
