"""Linux's drivers of the CMOS clock and the keyboard controller: rtc-cmos, i8042 and atkbd, in one boot."""

from __future__ import annotations

import re
from typing import NamedTuple

import pytest
from guest import initramfs, kernel
from tests.vmm.device_machine import Recorder, options

from minimal_vmm import Machine
from pyvmm_device import I8042, Cmos, Ps2Keyboard, register_ports

pytestmark = [pytest.mark.guest, pytest.mark.kernel_bound]

PATIENCE = 300
LEAP_DAY = 1709251170  # 2024-02-29 23:59:30
SET_BY_GUEST = 1956526200  # 2031-12-31 23:30:00
A_DOWN_AND_UP = b"\x1c\xf0\x1c"
SCRIPT = """\
dmesg | grep -E 'rtc|i8042|input:'
echo first $(cat /sys/class/rtc/rtc0/date)
date -u -s '2031-12-31 23:30:00' > /dev/null && hwclock -u -w -f /dev/rtc0
grep -E 'rtc|i8042' /proc/interrupts
(sleep 2; echo press a $((40 + 2))) & hexdump -v -n 144 -e '24/1 "%02x" "\\n"' /dev/input/event0
echo the script is $((40 + 2))
poweroff -f
"""


class OldDevices(Machine):
    """The example with a clock that interrupts, and a keyboard."""

    console: Recorder

    def make_console(self) -> Recorder:
        return Recorder()

    def add_devices(self) -> None:
        super().add_devices()
        for port in (0x60, 0x70):
            self.io.pio.deregister(port)
        self.key = Ps2Keyboard()
        self.cmos = Cmos(self.interrupt(8), self.loop, time=LEAP_DAY)
        controller = I8042(
            self.on_reset,
            keyboard=self.key,
            keyboard_interrupt=self.interrupt(1),
            aux_interrupt=self.interrupt(12),
        )
        register_ports(self.io, self.cmos, controller)


class Boot(NamedTuple):
    """What the guest said, and what its clock said in the end."""

    text: str
    clock: int


@pytest.fixture(scope="module")
def boot() -> Boot:
    # the example's ACPI tables name no keyboard controller, and Linux would believe them
    machine = OldDevices(options(kernel.build("full").vmlinux, initramfs.shell(), "i8042.nopnp"))
    pending = bytearray(SCRIPT.encode())

    def feed() -> None:
        del pending[: machine.serial.enqueue(bytes(pending[:64]))]

    def begin() -> None:
        machine.serial.on_room = lambda: pending and machine.loop.call_soon(feed)
        machine.loop.call_soon(feed)

    machine.console.awaited[b"guest: a busybox shell"] = begin
    machine.console.awaited[b"press a 42"] = lambda: machine.loop.call_soon(lambda: machine.key.press(A_DOWN_AND_UP))
    timer = machine.loop.call_later(PATIENCE, lambda: machine.finish(3, "this took too long"))
    try:
        machine.run()
        clock = machine.cmos.time
    finally:
        timer.cancel()
        machine.close()
    assert "the script is 42" in machine.console.text, machine.console.text
    return Boot(machine.console.text, clock)


def test_linux_reads_and_sets_the_clock(boot: Boot) -> None:
    assert re.search(r"rtc_cmos rtc_cmos: registered as rtc0", boot.text), boot.text
    started = re.search(r"setting system clock to \S+ UTC \((\d+)\)", boot.text)
    assert started, boot.text
    assert 0 <= int(started[1]) - LEAP_DAY < PATIENCE
    assert re.search(r"^first 2024-0(2-29|3-01)$", boot.text, re.MULTILINE), boot.text
    assert 0 <= boot.clock - SET_BY_GUEST < PATIENCE


def test_linux_finds_both_ports_of_the_controller(boot: Boot) -> None:
    assert "serio: i8042 KBD port at 0x60,0x64 irq 1" in boot.text, boot.text
    # it only says so once IRQ 12 has been delivered
    assert "serio: i8042 AUX port at 0x60,0x64 irq 12" in boot.text, boot.text


def test_linux_has_a_keyboard_and_reads_its_keys(boot: Boot) -> None:
    assert "input: AT Translated Set 2 keyboard" in boot.text, boot.text
    events = re.findall(r"^[0-9a-f]{32}([0-9a-f]{16})$", boot.text, re.MULTILINE)
    assert [event for event in events if event.startswith("0100")] == ["01001e0001000000", "01001e0000000000"]
