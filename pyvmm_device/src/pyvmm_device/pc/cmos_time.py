"""The clock registers of an MC146818 as numbers: BCD or binary, 12 or 24 hours, alarm bytes that match any time."""

from __future__ import annotations

import time

SECONDS, SECONDS_ALARM, MINUTES, MINUTES_ALARM, HOURS, HOURS_ALARM = range(6)
WEEKDAY, DAY, MONTH, YEAR, CENTURY = 6, 7, 8, 9, 0x32
TIME_REGISTERS = (SECONDS, MINUTES, HOURS, WEEKDAY, DAY, MONTH, YEAR, CENTURY)

BINARY, HOURS_24 = 0x04, 0x02
"""DM and 24/12 of register B."""
AFTERNOON = 0x80
ANY = 0xC0
"""An alarm byte with both of these bits matches whatever the clock says (data sheet, "Alarm": "don't care")."""
SECONDS_OF_DAY = 86400


def bcd(number: int) -> int:
    """Put two decimal digits into one byte."""
    return number // 10 << 4 | number % 10


def encode(number: int, mode: int) -> int:
    """Return a number as a register holds it."""
    return number if mode & BINARY else bcd(number)


def decode(value: int, mode: int) -> int:
    """Return what a register says; digits beyond 9 are worth what they say."""
    return value if mode & BINARY else (value >> 4) * 10 + (value & 0xF)


def encode_hour(hour: int, mode: int) -> int:
    """Return an hour of 0 to 23 as a register holds it."""
    if mode & HOURS_24:
        return encode(hour, mode)
    return encode(hour % 12 or 12, mode) | (AFTERNOON if hour >= 12 else 0)


def decode_hour(value: int, mode: int) -> int:
    """Return the hour in a register; of 12 hours, 12 is the first."""
    if mode & HOURS_24:
        return decode(value, mode)
    return decode(value & ~AFTERNOON, mode) % 12 + (12 if value & AFTERNOON else 0)


def to_registers(seconds: int, weekday_shift: int, mode: int) -> dict[int, int]:
    """Return what the clock registers hold.

    Args:
        seconds: since 1970, in the clock's own time zone.
        weekday_shift: how far the day of the week, which counts by itself, is from the calendar's.
        mode: register B.
    """
    now = time.gmtime(seconds)
    return {
        SECONDS: encode(now.tm_sec, mode),
        MINUTES: encode(now.tm_min, mode),
        HOURS: encode_hour(now.tm_hour, mode),
        WEEKDAY: encode((now.tm_wday + 1 + weekday_shift) % 7 + 1, mode),
        DAY: encode(now.tm_mday, mode),
        MONTH: encode(now.tm_mon, mode),
        YEAR: encode(now.tm_year % 100, mode),
        CENTURY: encode(now.tm_year // 100 % 100, mode),
    }


def from_registers(registers: bytearray, mode: int) -> tuple[int, int]:
    """Return the seconds since 1970 and the shift of the day of the week that registers say.

    A date that is none (the 31st of February) is as many days after one that is.
    """

    def at(index: int) -> int:
        return decode(registers[index], mode)

    year = at(CENTURY) % 100 * 100 + at(YEAR) + (at(MONTH) - 1) // 12
    days = days_from_civil(year, (at(MONTH) - 1) % 12 + 1, 1) + at(DAY) - 1
    seconds = days * SECONDS_OF_DAY + decode_hour(registers[HOURS], mode) * 3600 + at(MINUTES) * 60 + at(SECONDS)
    calendar = (time.gmtime(seconds).tm_wday + 1) % 7
    return seconds, (at(WEEKDAY) - 1 - calendar) % 7


def days_from_civil(year: int, month: int, day: int) -> int:
    """Count the days from 1970-01-01 to a Gregorian date; years begin in March, so that leap days end them."""
    year -= month <= 2
    day_of_year = (153 * ((month + 9) % 12) + 2) // 5 + day - 1
    return year * 365 + year // 4 - year // 100 + year // 400 + day_of_year - 719468


def alarm(registers: bytearray, mode: int) -> tuple[int | None, int | None, int | None] | None:
    """Return hour, minute and second of the alarm, each None where it matches any; or None: it never rings."""
    fields = []
    for index, decoder, most in (
        (HOURS_ALARM, decode_hour, 23),
        (MINUTES_ALARM, decode, 59),
        (SECONDS_ALARM, decode, 59),
    ):
        value = registers[index]
        field = None if value >= ANY else decoder(value, mode)
        if field is not None and field > most:
            return None
        fields.append(field)
    hour, minute, second = fields
    return hour, minute, second


def seconds_to_alarm(now: int, hour: int | None, minute: int | None, second: int | None) -> int:
    """Return how long it is from a second (of the day) to the next at which the alarm rings: 1 to 86400."""
    hours, rest = divmod(now + 1, 3600)
    minutes, seconds = divmod(rest, 60)
    if second is not None:
        minutes += seconds > second
        seconds = second
    hours, minutes = hours + minutes // 60, minutes % 60
    if minute is not None and minutes != minute:
        hours += minutes > minute
        minutes, seconds = minute, second or 0
    if hour is not None and hours % 24 != hour:
        hours += (hour - hours) % 24
        minutes, seconds = minute or 0, second or 0
    return hours * 3600 + minutes * 60 + seconds - now


def period(status_a: int) -> int:
    """Return the periodic interrupt's period in the crystal's; 0 for none (data sheet, "Periodic Interrupt")."""
    rate = status_a & 0xF
    return 1 << (rate + 6 if rate in (1, 2) else rate - 1) if rate else 0


def host_time(*, local: bool) -> int:
    """Return the nanoseconds since 1970, in UTC or as the clock on the host's wall."""
    now = time.time_ns()
    return now + time.localtime(now // 1_000_000_000).tm_gmtoff * 1_000_000_000 if local else now
