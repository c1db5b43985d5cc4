"""The generic event device: interrupts that run AML, on machines without general purpose events.

Source: ACPI 6.5, 5.6.9.
"""

from __future__ import annotations

from pyvmm_loader.acpi.aml import Arg, Device, Equal, If, Interrupt, Method, Name, ResourceTemplate

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyvmm_loader.acpi.aml import Term


def ged(events: Mapping[int, Sequence[Term]], *, level: bool = False) -> Device:
    """Return the device: `events` maps a GSI to the statements that its interrupt runs."""
    handlers = [If(Equal(Arg(0), gsi), *statements) for gsi, statements in events.items()]
    return Device(
        "GED",
        Name("_HID", "ACPI0013"),
        Name("_UID", 0),
        Name("_CRS", ResourceTemplate(*[Interrupt(gsi, level=level) for gsi in events])),
        Method("_EVT", 1, *handlers, serialized=True),
    )
