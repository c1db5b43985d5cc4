"""Registers by which a guest sleeps, resets and changes to ACPI mode, beside or instead of ACPI's fixed hardware.

>>> sleep = AcpiSleep(lambda kind: print("sleep type", kind))
>>> sleep.write(0, memoryview(bytes([SLP_EN | 5 << SLP_TYP_SHIFT])))
sleep type 5

Source: ACPI 6.5, 4.8.3.2.5 (SMI command port), 4.8.3.6 (reset register), 4.8.3.7 (sleep control and status); Intel
ICH9 data sheet, 13.7.5 (RST_CNT).
"""

from __future__ import annotations

from pyvmm_device.register_device import Register, RegisterDevice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm_device.acpi.pm import AcpiPm

SLP_EN, SLP_TYP_SHIFT, WAK = 0x20, 2, 0x80
ACPI_ENABLE, ACPI_DISABLE = 0xF1, 0xF0
RESET_PORT, SYS_RST, RST_CPU, FULL_RST = 0xCF9, 0x02, 0x04, 0x08


class AcpiSleep(RegisterDevice):
    """Sleep control and status of a machine with reduced hardware, a byte each.

    Args:
        on_sleep: called with SLP_TYP when the guest sets SLP_EN.
    """

    control = Register(0, 1, writable=7 << SLP_TYP_SHIFT)
    status = Register(1, 1, writable=0, clears=WAK)

    def __init__(self, on_sleep: Callable[[int], object]) -> None:
        super().__init__()
        self._on_sleep = on_sleep

    def wake(self) -> None:
        """Say that the guest was woken from a sleep."""
        with self.lock:
            self.status |= WAK

    @control.on_write
    def _write_control(self, value: int) -> None:
        if value & SLP_EN:
            self.lock.after(self._on_sleep, value >> SLP_TYP_SHIFT & 7)


class AcpiMode(RegisterDevice):
    """The SMI command port: a guest writes what the FADT calls ACPI_ENABLE and ACPI_DISABLE.

    The machine is in legacy mode from the time this is made, until the guest asks.

    Args:
        pm: whose SCI_EN follows.
        enable: the value for ACPI mode.
        disable: the value for legacy mode.
    """

    command = Register(0, 1)

    def __init__(self, pm: AcpiPm, enable: int = ACPI_ENABLE, disable: int = ACPI_DISABLE) -> None:
        super().__init__()
        self._pm = pm
        self._values = {enable: True, disable: False}
        pm.set_acpi_mode(False)

    def reset(self) -> None:
        """Be in legacy mode."""
        super().reset()
        self._pm.set_acpi_mode(False)

    @command.on_write
    def _write_command(self, value: int) -> None:
        on = self._values.get(value)
        if on is not None:
            self.lock.after(self._pm.set_acpi_mode, on)


class ResetPort(RegisterDevice):
    """The reset control register of a PC chipset, at port 0xcf9: one byte within PCI's 0xcf8 to 0xcfb.

    `PciRoot` has this register itself; this is for a machine without PCI.

    Args:
        on_reset: called when RST_CPU rises, in the thread of the vCPU that wrote it, with no lock.
    """

    control = Register(0, 1, writable=SYS_RST | FULL_RST)

    def __init__(self, on_reset: Callable[[], object]) -> None:
        super().__init__()
        self._on_reset = on_reset

    @control.on_write
    def _write_control(self, value: int) -> None:
        if value & RST_CPU:
            self.lock.after(self._on_reset)
