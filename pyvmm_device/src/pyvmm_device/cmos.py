"""The CMOS memory and clock of a PC (Motorola MC146818), as far as a kernel reads it while it boots."""

from __future__ import annotations

import time

INDEX, DATA = 0, 1
SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR = 0, 2, 4, 6, 7, 8, 9
STATUS_A, STATUS_B, STATUS_C, STATUS_D, CENTURY = 10, 11, 12, 13, 0x32

STATUS_A_DIVIDER = 0x26  # 32.768 kHz time base, 1024 Hz; the update-in-progress bit is never set
STATUS_B_24_HOURS = 0x02  # and numbers in BCD
STATUS_D_VALID = 0x80


class Cmos:
    """An index port and a data port over 128 bytes of memory; the clock's registers give the host's time, in UTC."""

    def __init__(self) -> None:
        self._index = 0
        self._memory = bytearray(128)
        self._memory[STATUS_A] = STATUS_A_DIVIDER
        self._memory[STATUS_B] = STATUS_B_24_HOURS
        self._memory[STATUS_D] = STATUS_D_VALID

    def read(self, offset: int, buffer: memoryview) -> None:
        """Read what the index points to; the index itself cannot be read back."""
        buffer[:] = b"\xff" * len(buffer)
        if offset == DATA:
            buffer[0] = self._value(self._index)

    def write(self, offset: int, data: memoryview) -> None:
        """Set the index (bit 7 is the NMI mask of the PC, not an address), or memory; the clock is not to be set."""
        if offset == INDEX:
            self._index = data[0] & 0x7F
        elif self._index > STATUS_D:
            self._memory[self._index] = data[0]

    def _value(self, index: int) -> int:
        now = time.gmtime()
        clock = {
            SECONDS: now.tm_sec,
            MINUTES: now.tm_min,
            HOURS: now.tm_hour,
            WEEKDAY: (now.tm_wday + 1) % 7 + 1,
            DAY: now.tm_mday,
            MONTH: now.tm_mon,
            YEAR: now.tm_year % 100,
            CENTURY: now.tm_year // 100,
        }
        return bcd(clock[index]) if index in clock else self._memory[index]

    def __repr__(self) -> str:
        return "<Cmos memory and clock>"


def bcd(number: int) -> int:
    """Two decimal digits in one byte."""
    return number // 10 << 4 | number % 10
