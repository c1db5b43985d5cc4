"""ACPI's registers, in the sequences of ACPICA."""

import pytest

from pyvmm_device import AcpiGpe, AcpiMode, AcpiPm, AcpiSleep, ManualClock, ResetPort, Sci
from pyvmm_device.acpi.pm import FREQUENCY, PM1_CONTROL, PM1_ENABLE, PM1_STATUS, PM_TIMER, PWRBTN, SLPBTN, TMR, WAK

SECOND = 1_000_000_000


class Level:
    def __init__(self) -> None:
        self.up = False
        self.changes = 0

    def assert_(self) -> None:
        self.up = True
        self.changes += 1

    def clear(self) -> None:
        self.up = False
        self.changes += 1


class Pc:
    """Fixed hardware and what it did."""

    def __init__(self, *, wide: bool = True) -> None:
        self.line, self.clock = Level(), ManualClock()
        self.slept: list[int] = []
        self.sci = Sci(self.line)
        self.pm = AcpiPm(self.sci, self.clock, self.slept.append, wide=wide)

    def get(self, offset: int, size: int = 2) -> int:
        buffer = memoryview(bytearray(size))
        self.pm.read(offset, buffer)
        return int.from_bytes(buffer, "little")

    def put(self, offset: int, value: int, size: int = 2) -> None:
        self.pm.write(offset, memoryview(value.to_bytes(size, "little")))


def test_acpica_handles_the_buttons() -> None:
    pc = Pc()
    pc.pm.press()
    assert not pc.line.up  # not enabled
    pc.put(PM1_STATUS, PWRBTN)
    pc.put(PM1_ENABLE, PWRBTN | SLPBTN)
    assert not pc.line.up
    pc.pm.press()
    pc.pm.press_sleep()
    assert pc.line.up
    assert pc.get(PM1_STATUS) & pc.get(PM1_ENABLE) == PWRBTN | SLPBTN
    pc.put(PM1_STATUS, PWRBTN)
    assert pc.line.up
    pc.put(PM1_STATUS, SLPBTN)
    assert not pc.line.up
    assert pc.line.changes == 2


def test_acpica_enters_s5_in_two_writes() -> None:
    pc = Pc()
    control = pc.get(PM1_CONTROL) & ~(7 << 10)
    pc.put(PM1_CONTROL, control | 5 << 10)
    assert pc.slept == []
    pc.put(PM1_CONTROL, control | 5 << 10 | 1 << 13)
    assert pc.slept == [5]
    assert pc.get(PM1_CONTROL) == 5 << 10 | 1  # SLP_EN reads as zero, SCI_EN stays
    pc.pm.set_status(WAK)
    assert pc.get(PM1_STATUS) == WAK


@pytest.mark.parametrize(("wide", "bits"), [(True, 32), (False, 24)])
def test_the_timer_counts_and_overflows(wide: bool, bits: int) -> None:
    pc = Pc(wide=wide)
    pc.clock.advance(SECOND)
    assert pc.get(PM_TIMER, 4) == FREQUENCY
    pc.put(PM1_ENABLE, TMR)
    half = (1 << bits - 1) * SECOND // FREQUENCY + 1
    pc.clock.advance(half - SECOND - 1000)
    assert not pc.line.up
    pc.clock.advance(1000)
    assert pc.line.up
    assert pc.get(PM1_STATUS) == TMR
    pc.put(PM1_STATUS, TMR)
    assert not pc.line.up
    pc.clock.advance(half)
    assert pc.line.up
    assert pc.get(PM_TIMER, 4) < FREQUENCY
    pc.pm.reset()
    assert not pc.line.up
    assert pc.get(PM_TIMER, 4) == 0


def test_events_share_the_line() -> None:
    pc = Pc()
    gpe = AcpiGpe(pc.sci)
    gpe.write(2, memoryview(b"\x02\0"))
    gpe.trigger(0)
    assert not pc.sci.active
    gpe.trigger(1)
    pc.put(PM1_ENABLE, PWRBTN)
    pc.pm.press()
    gpe.write(0, memoryview(b"\xff\xff"))
    assert pc.line.up  # the button still
    assert repr(pc.sci) == "<Sci up>"
    pc.put(PM1_STATUS, PWRBTN)
    assert not pc.line.up
    with pytest.raises(ValueError, match="0 to 15"):
        gpe.trigger(16)


def test_a_restored_event_raises_the_line() -> None:
    pc, other = Pc(), Pc()
    pc.put(PM1_ENABLE, PWRBTN)
    pc.pm.press()
    other.pm.restore(pc.pm.state())
    assert other.line.up
    gpe, twin = AcpiGpe(pc.sci), AcpiGpe(Sci(line := Level()))
    gpe.write(2, memoryview(b"\x01"))
    gpe.trigger(0)
    twin.restore(gpe.state())
    assert line.up
    twin.reset()
    assert not line.up


def test_linux_enables_acpi_mode() -> None:
    pc = Pc()
    mode = AcpiMode(pc.pm)
    pc.put(PM1_ENABLE, PWRBTN)
    pc.pm.press()
    assert pc.get(PM1_CONTROL) & 1 == 0
    assert not pc.line.up
    mode.write(0, memoryview(b"\x00"))
    mode.write(0, memoryview(b"\xf1"))
    assert pc.get(PM1_CONTROL) & 1 == 1
    assert pc.line.up
    mode.write(0, memoryview(b"\xf0"))
    assert not pc.line.up
    mode.write(0, memoryview(b"\xf1"))
    mode.reset()
    assert pc.get(PM1_CONTROL) & 1 == 0


def test_reduced_hardware_sleeps_and_wakes() -> None:
    slept: list[int] = []
    sleep, status = AcpiSleep(slept.append), memoryview(bytearray(1))
    sleep.write(0, memoryview(bytes([5 << 2])))
    assert slept == []
    sleep.write(0, memoryview(bytes([5 << 2 | 0x20])))
    assert slept == [5]
    sleep.wake()
    sleep.read(1, status)
    assert status[0] == 0x80
    sleep.write(1, memoryview(b"\x80"))
    sleep.read(1, status)
    assert status[0] == 0


def test_linux_resets_by_0xcf9() -> None:
    resets: list[int] = []
    port = ResetPort(lambda: resets.append(1))
    port.write(0, memoryview(b"\x02"))
    assert resets == []
    port.write(0, memoryview(b"\x06"))
    assert resets == [1]
