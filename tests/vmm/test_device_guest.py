"""Linux's own drivers on the devices of pyvmm_device: one boot, many looks."""

import random
import re
from datetime import UTC, datetime, timedelta

import pytest
from guest import initramfs, kernel
from tests.vmm.device_machine import DeviceMachine, options

from pyvmm_device import PciFunction, Ram
from pyvmm_device.pci.bar import ROM_INDEX
from pyvmm_device.pci.config_space import CAP_MSI, CAP_MSIX, CAP_VENDOR
from pyvmm_device.qemu.pvpanic import PANICKED

pytestmark = pytest.mark.guest

PATIENCE = 500
SERIAL_BYTES = 100 << 10
IO_FLAG, MEMORY_FLAG, PREFETCH_FLAG, WIDE_FLAG = 0x100, 0x200, 0x2000, 0x100000


def fnv(data: bytes) -> int:
    """FNV-1a of 64 bits, as the guest computes it."""
    total = 0xCBF29CE484222325
    for byte in data:
        total = (total ^ byte) * 0x100000001B3 & 0xFFFFFFFFFFFFFFFF
    return total


class Found:
    """One function as Linux shows it in sysfs."""

    def __init__(self, config: str) -> None:
        self.config = bytes.fromhex(config)
        self.resources: dict[int, tuple[int, int, int]] = {}

    def capabilities(self) -> list[int]:
        numbers, at = [], self.config[0x34]
        while at:
            numbers.append(self.config[at])
            at = self.config[at + 1]
        return numbers


class Boot:
    """A machine that ran to its end, and what its guest said."""

    def __init__(self) -> None:
        words = "do=pci,plug,serial,rtc,show,crash slot=0000:02:00.0 show=/proc/interrupts"
        words += f" bytes={SERIAL_BYTES}"
        self.machine = machine = DeviceMachine(options(kernel.build("full").vmlinux, initramfs.devices(), words))
        self.input = random.Random(1).randbytes(SERIAL_BYTES)
        self.pending = bytearray(self.input)
        self.plugged = PciFunction(0x1234, 0x0004, 0xFF0000)
        self.plugged.add_bar(0, 0x1000, Ram(0x1000))
        later, awaited = machine.loop.call_soon, machine.console.awaited
        awaited[b"serial: ready"] = self.begin_input
        awaited[b"plug it in"] = lambda: later(lambda: machine.port.insert(self.plugged))
        awaited[b"take it out"] = lambda: later(machine.port.request_eject)
        try:
            self.end = machine.patiently(PATIENCE)
        finally:
            machine.close()
        self.text = machine.console.text
        self.functions: dict[str, Found] = {}
        for line in self.text.splitlines():
            if match := re.match(r"pci 0000:(\S+) ([0-9a-f]+)$", line):
                found = self.functions[match[1]] = Found(match[2])
            elif match := re.match(r"resource (\d+) (0x\w+) (0x\w+) (0x\w+)$", line):
                found.resources[int(match[1])] = (int(match[2], 16), int(match[3], 16), int(match[4], 16))

    def begin_input(self) -> None:
        self.machine.second.on_room = lambda: self.pending and self.machine.loop.call_soon(self.feed)
        self.machine.loop.call_soon(self.feed)

    def feed(self) -> None:
        """As much as the receiver has room for; the guest says when there is room again."""
        del self.pending[: self.machine.second.enqueue(bytes(self.pending[:64]))]


@pytest.fixture(scope="module")
def boot() -> Boot:
    return Boot()


def test_the_guest_reached_its_end(boot: Boot) -> None:
    assert boot.end == (1, "the guest's kernel panicked: Attempted to kill init! exitcode=0x00000100"), boot.text


def test_linux_finds_every_function_as_it_was_placed(boot: Boot) -> None:
    machine = boot.machine
    placed = {
        "00:00.0": machine.root.host_bridge,
        "00:01.0": machine.sample,
        "00:01.3": machine.root.bus.get(1, 3),
        "00:02.0": machine.bridge,
        "00:03.0": machine.port,
        "00:04.0": machine.root.bus.get(4, 0),
        "01:07.0": machine.behind,
    }
    assert set(boot.functions) - {"02:00.0"} == set(placed)
    for place, function in placed.items():
        assert function is not None
        dump = boot.functions[place].config
        expected = bytearray(function.config.data[: len(dump)])
        if function is machine.port:
            # what its driver and hot-plug changed since then: command, slot control and status, the message
            expected[4:6], expected[0x52:] = dump[4:6], dump[0x52:]
        assert dump == expected, place


def test_linux_sizes_every_bar(boot: Boot) -> None:
    machine = boot.machine
    seen = 0
    for place, function in {"00:01.0": machine.sample, "01:07.0": machine.behind, "02:00.0": boot.plugged}.items():
        resources = boot.functions[place].resources
        assert set(resources) == set(function.bars)
        for index, bar in function.bars.items():
            first, last, flags = resources[index]
            assert last - first + 1 == bar.size
            if function is not boot.plugged and index != ROM_INDEX:
                assert first == bar.address  # the other was taken out, and a ROM is placed when it is read
            assert bool(flags & IO_FLAG) == bar.io
            assert bool(flags & MEMORY_FLAG) != bar.io
            assert bool(flags & PREFETCH_FLAG) == (bar.prefetchable or index == ROM_INDEX)
            assert bool(flags & WIDE_FLAG) == bar.wide
            seen += 1
    assert seen == 7
    bridge_window = boot.functions["00:02.0"].resources[8]
    behind = boot.functions["01:07.0"].resources[0]
    assert bridge_window[0] <= behind[0] <= behind[1] <= bridge_window[1]


def test_linux_sees_msi_and_msix(boot: Boot) -> None:
    found = boot.functions["00:01.0"]
    assert found.capabilities() == [CAP_MSI, CAP_MSIX, CAP_VENDOR]
    config = found.config
    msi = boot.machine.sample.msi
    msix = boot.machine.sample.msix
    assert msi is not None
    assert msix is not None
    assert config[msi.offset + 2] >> 1 & 7 == 2  # four vectors
    assert int.from_bytes(config[msix.offset + 2 : msix.offset + 4], "little") & 0x7FF == 2  # three vectors
    # the driver of the root port had its message delivered: hot-plug went by it
    assert boot.machine.port.msi is not None
    assert boot.machine.port.msi.group.get_config(0) is not None


def test_linux_takes_a_device_in_and_lets_go_of_it(boot: Boot) -> None:
    assert boot.functions["02:00.0"].config[:4] == bytes.fromhex("34120400")
    assert "it has gone" in boot.text
    assert boot.machine.ejected == [[boot.plugged]]
    assert boot.machine.port.slot_state() == "empty"


def test_100_kib_of_serial_input_arrive(boot: Boot) -> None:
    assert f"serial: {SERIAL_BYTES} bytes, checksum {fnv(boot.input):016x}\n" in boot.text
    assert not boot.machine.second.state()["overrun"]


def test_linux_reads_and_sets_the_clock_and_has_its_alarm(boot: Boot) -> None:
    read = re.search(r"^rtc: (\d+) (\d+) (\d+) (\d+) (\d+) (\d+)$", boot.text, re.MULTILINE)
    assert read, boot.text
    then = datetime(*map(int, read.groups()), tzinfo=UTC)  # type: ignore[arg-type, misc] # there are six
    assert abs(then - datetime.now(UTC)) < timedelta(seconds=PATIENCE)
    assert "rtc: set to 2033 11 12 23 58 40\n" in boot.text
    # RTC_IRQF and RTC_AF: the alarm's interrupt came, at the second it was set to
    assert re.search(r"^rtc: events 000001a0 at 2033 11 12 23 58 4[3-9]$", boot.text, re.MULTILINE), boot.text
    assert re.search(r"^ *8: +[1-9]\d* .*rtc0$", boot.text, re.MULTILINE), boot.text


def test_linux_tells_of_its_panic(boot: Boot) -> None:
    assert boot.machine.events == [PANICKED]
