"""What plugs into an i8042, and the codes of keys.

Source: IBM PS/2 Hardware Interface Technical Reference, "Keyboard (101- and 102-Key)", "Scan Codes".
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any, Protocol

    class Ps2Device(Protocol):
        """What can be plugged into the controller: a keyboard or a mouse."""

        def connect(self, on_data: Callable[[], object]) -> None:
            """Call when there is something to send."""
            ...

        def receive(self, value: int) -> None:
            """Take a byte from the controller."""
            ...

        def send(self) -> int | None:
            """Give the next byte, or None."""
            ...

        def reset(self) -> None:
            """Be as after power-on."""
            ...

        def state(self) -> dict[str, Any]:
            """Return everything the guest could notice."""
            ...

        def restore(self, state: Mapping[str, Any]) -> None:
            """Become what a state says."""
            ...

        def check_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
            """Raise `DeviceStateError` where `restore` would."""
            ...


BREAK = 0xF0
"""Comes before the code of a key that is released, in scan code set 2."""
SET_1 = bytes.fromhex(
    "ff43413f3d3b3c58644442403e0f295965382a701d10025a66712c1f1e11035b"
    "672e2d201205045c68392f211413065d693130232215075e6a7232241608095f"
    "6b332517180b0a606c34352627190c616d7328741a0d626e3a361c1b752b6376"
    "55567778797a0e7b7c4f7d4b477e7f6f5253504c4d480145574e514a37494654"
    "8081824154"
)


def to_set_1(code: int) -> int:
    """Translate a code of scan code set 2 to what a PC has known since the XT; from 0x85 on they are the same."""
    return SET_1[code] if code < len(SET_1) else code
