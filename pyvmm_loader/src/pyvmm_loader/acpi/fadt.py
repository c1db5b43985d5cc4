"""FADT and FACS: power management registers, and which of a PC's devices there are.

Source: ACPI 6.5, 5.2.9 and 5.2.10.
"""

from __future__ import annotations

from itertools import pairwise

from pyvmm_loader.acpi.table import HEADER_SIZE, MEMORY, NO_ADDRESS, PORT, AcpiError, GenericAddress, table
from pyvmm_loader.fields import pack

SIZE = 276  # FADT of ACPI 6: 268 bytes up to the sleep registers, then the hypervisor's name
FACS_SIZE = 64
BYTE, PCI_CONFIG = 8, 2
MAJOR, MINOR = 6, 5
WBINVD, PROC_C1, PWR_BUTTON, SLP_BUTTON = 1 << 0, 1 << 2, 1 << 4, 1 << 5
RTC_S4, TMR_VAL_EXT, RESET_REG_SUP = 1 << 7, 1 << 8, 1 << 10
APIC_PHYSICAL, HW_REDUCED = 1 << 19, 1 << 20
LEGACY_DEVICES, HAS_8042, NO_VGA, NO_MSI, NO_ASPM, NO_CMOS_RTC = 1, 2, 4, 8, 16, 32
"""Bits of IAPC_BOOT_ARCH."""


class PmBlock:
    """The fixed hardware of a PC chipset: event, control, timer and general purpose event registers, all ports.

    `pm1_event` is 4 ports long, `pm1_control` 2, `timer` 4 (0 leaves it out), `gpe0` `gpe0_length` (half status, half
    enable). The machine is in ACPI mode from the start: there is no SMI command port.
    """

    __slots__ = ("gpe0", "gpe0_length", "pm1_control", "pm1_event", "sci", "timer")

    def __init__(
        self,
        pm1_event: int = 0x600,
        pm1_control: int = 0x604,
        timer: int = 0x608,
        gpe0: int = 0,
        gpe0_length: int = 4,
        sci: int = 9,
    ) -> None:
        self.pm1_event = pm1_event
        self.pm1_control = pm1_control
        self.timer = timer
        self.gpe0 = gpe0
        self.gpe0_length = gpe0_length if gpe0 else 0
        self.sci = sci
        for name, port, length in (
            ("events", pm1_event, 4), ("control", pm1_control, 2), ("timer", timer, 4), ("gpe0", gpe0, self.gpe0_length)
        ):  # fmt: skip
            if not 0 <= port <= 0x10000 - length:
                raise AcpiError(f"{name} at port {port:#x}: {length} ports end at 0xffff", address=port)
        if not pm1_event or not pm1_control:
            # Linux, acpi_tb_convert_fadt: "Required FADT field ... has zero address and/or length"
            raise AcpiError("events and control of a PC's power management have ports; without, omit the block")
        blocks = sorted([(pm1_event, 4), (pm1_control, 2), (timer, 4 * bool(timer)), (gpe0, self.gpe0_length)])
        for (port, length), (behind, more) in pairwise(blocks):
            if length and more and port + length > behind:
                raise AcpiError(f"the registers at port {port:#x} overlap those at {behind:#x}", address=behind)
        # ACPI 6.5, 5.2.9: GPE0_BLK_LEN is "a non-negative multiple of 2"
        if self.gpe0_length % 2 or not 0 <= self.gpe0_length <= 0xFF:
            raise AcpiError(f"{gpe0_length} ports of general purpose events: half of them are status, half enable")

    def __repr__(self) -> str:
        return (
            f"<PmBlock events {self.pm1_event:#x} control {self.pm1_control:#x} timer {self.timer:#x} SCI {self.sci}>"
        )


def _check_byte(register: GenericAddress, what: str) -> None:
    # ACPI 6.5, 5.2.9: "Only System I/O space, System Memory space and PCI Configuration space (bus #0) are valid ...
    # Also, Register_Bit_Width must be 8 and Register_Bit_Offset must be 0."
    if register.bits != BYTE or register.space not in (MEMORY, PORT, PCI_CONFIG) or not register.address:
        raise AcpiError(f"{what} is {register!r}; it has 8 bits, at an address in memory or I/O", register=register)


class Reset:
    """The register that resets the machine and the value that does."""

    __slots__ = ("register", "value")

    def __init__(self, register: GenericAddress, value: int) -> None:
        _check_byte(register, "the reset register")
        if not 0 <= value <= 0xFF:
            raise AcpiError(f"reset by writing {value:#x}: it is a byte", value=value)
        self.register = register
        self.value = value


class SleepRegisters:
    """Sleep control and status of a machine with reduced hardware, one byte each. ACPI 4.8.3.7."""

    __slots__ = ("control", "status")

    def __init__(self, control: GenericAddress, status: GenericAddress) -> None:
        _check_byte(control, "sleep control")
        _check_byte(status, "sleep status")
        self.control = control
        self.status = status


def fadt(
    dsdt: int,
    facs: int = 0,
    *,
    pm: PmBlock | None = None,
    sleep: SleepRegisters | None = None,
    reset: Reset | None = None,
    boot_arch: int = 0,
    power_button_device: bool = True,
) -> bytes:
    """Return the table. Without `pm` the hardware is reduced: no PM1 block, no SCI, no legacy interrupt controller.

    `dsdt` and `facs` are addresses, `boot_arch` is a combination of LEGACY_DEVICES and its like. A power button is
    either a device of the DSDT or the fixed one of the PM block.
    """
    flags = WBINVD | PROC_C1 | SLP_BUTTON
    if power_button_device or pm is None:
        flags |= PWR_BUTTON
    if pm is None:
        flags |= HW_REDUCED
    elif pm.timer:
        flags |= TMR_VAL_EXT
    if reset is not None:
        flags |= RESET_REG_SUP
    block = bytearray(SIZE - HEADER_SIZE)
    _put(block, "II", 36, facs & 0xFFFFFFFF if facs < 1 << 32 else 0, dsdt if dsdt < 1 << 32 else 0)
    _put(block, "B", 45, 0)  # preferred profile: unspecified
    _put(block, "H", 109, boot_arch)
    _put(block, "I", 112, flags)
    if reset is not None:
        _put(block, "12sB", 116, bytes(reset.register), reset.value)
    _put(block, "B", 131, MINOR)
    _put(block, "Q", 140, dsdt)
    if facs >= 1 << 32:
        _put(
            block, "Q", 132, facs
        )  # "if the FIRMWARE_CTRL field contains a non zero value then this field must be zero"
    if pm is not None:
        _fixed_hardware(block, pm)
    if sleep is not None:
        _put(block, "12s12s", 244, bytes(sleep.control), bytes(sleep.status))
    _put(block, "8s", 268, b"PYVMM\0\0\0")
    return table("FACP", MAJOR, bytes(block))


def _put(block: bytearray, form: str, at: int, *values: int | bytes) -> None:
    """Write fields at their offset from the start of the table."""
    data = pack("<" + form, *values)
    block[at - HEADER_SIZE : at - HEADER_SIZE + len(data)] = data


def _fixed_hardware(block: bytearray, pm: PmBlock) -> None:
    _put(block, "H", 46, pm.sci)
    _put(block, "I", 56, pm.pm1_event)
    _put(block, "I", 64, pm.pm1_control)
    _put(block, "I", 76, pm.timer)
    _put(block, "I", 80, pm.gpe0)
    _put(block, "BBBBB", 88, 4, 2, 0, 4 if pm.timer else 0, pm.gpe0_length)
    _put(block, "HH", 96, 0xFFFF, 0xFFFF)  # latencies above 100 and 1000: no C2, no C3
    _put(block, "12s", 148, bytes(GenericAddress(pm.pm1_event, bits=32, access=2)))
    _put(block, "12s", 172, bytes(GenericAddress(pm.pm1_control, bits=16)))
    _put(block, "12s", 208, bytes(GenericAddress(pm.timer, bits=32)) if pm.timer else NO_ADDRESS)
    if pm.gpe0:
        _put(block, "12s", 220, bytes(GenericAddress(pm.gpe0, bits=8 * pm.gpe0_length, access=1)))


def facs() -> bytes:
    """Return the firmware control structure, 64-byte aligned by its reader; it has no checksum."""
    return pack("<4sIIIIIQB", b"FACS", FACS_SIZE, 0, 0, 0, 0, 0, 2).ljust(FACS_SIZE, b"\0")
