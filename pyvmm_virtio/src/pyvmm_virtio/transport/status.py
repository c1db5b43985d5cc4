"""The device status field as a table: which step a driver may take when, and what has to succeed for it.

Source: VIRTIO 1.3, 2.1 and 3.1.1.
"""

from __future__ import annotations

from pyvmm_virtio.constants import status as _status

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

ACKNOWLEDGE = _status.VIRTIO_CONFIG_S_ACKNOWLEDGE
DRIVER = _status.VIRTIO_CONFIG_S_DRIVER
DRIVER_OK = _status.VIRTIO_CONFIG_S_DRIVER_OK
FEATURES_OK = _status.VIRTIO_CONFIG_S_FEATURES_OK
NEEDS_RESET = _status.VIRTIO_CONFIG_S_NEEDS_RESET
FAILED = _status.VIRTIO_CONFIG_S_FAILED

STEPS: tuple[tuple[int, int, str], ...] = (
    # the bit, the bits that must be there, and who is asked
    (ACKNOWLEDGE, 0, ""),
    (DRIVER, ACKNOWLEDGE, ""),
    (FEATURES_OK, ACKNOWLEDGE | DRIVER, "features"),
    (DRIVER_OK, ACKNOWLEDGE | DRIVER | FEATURES_OK, "start"),
)
"""In the order in which a driver takes them. It may take several in one write, as SeaBIOS does."""

NAMES = {
    ACKNOWLEDGE: "ACKNOWLEDGE",
    DRIVER: "DRIVER",
    FEATURES_OK: "FEATURES_OK",
    DRIVER_OK: "DRIVER_OK",
    NEEDS_RESET: "DEVICE_NEEDS_RESET",
    FAILED: "FAILED",
}


def advance(status: int, written: int, gates: Mapping[str, Callable[[], bool]]) -> tuple[int, str | None]:
    """Return the status after a driver wrote one that is not 0, and what it did wrong, if anything.

    A step whose gate says no is not taken, and none after it: the driver reads the status to see.

    Args:
        status: as it was, without DEVICE_NEEDS_RESET.
        written: what the driver wrote.
        gates: what to ask before a step, by name.
    """
    wrong = None
    if written & FAILED:
        return status | FAILED, None
    if status & FAILED:
        return status, "the driver goes on after it set FAILED, without a reset"
    if status & ~written:
        # 2.1.1: "The driver MUST NOT clear a device status bit"
        wrong = f"the driver clears {describe(status & ~written)}"
    for bit, needed, gate in STEPS:
        if not written & bit or status & bit:
            continue
        if status & needed != needed:
            return status, f"the driver sets {NAMES[bit]} without {describe(needed & ~status)}"
        if gate and not gates[gate]():
            break
        status |= bit
    return status, wrong


def describe(status: int) -> str:
    """Name the bits of a status.

    >>> describe(0x0f)
    'ACKNOWLEDGE, DRIVER, FEATURES_OK, DRIVER_OK'
    """
    return ", ".join(name for bit, name in NAMES.items() if status & bit) or "nothing"
