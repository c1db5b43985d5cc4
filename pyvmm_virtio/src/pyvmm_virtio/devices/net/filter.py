"""Which frames a driver wants to receive (VIRTIO 1.3, 5.1.6.5.1 to 5.1.6.5.3)."""

from __future__ import annotations

from pyvmm_device.state import array, blob, choice, load_fields, number, optional

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

MODES = ("promisc", "allmulti", "alluni", "nomulti", "nouni", "nobcast", "unicast_overflow", "multicast_overflow")
BROADCAST = b"\xff" * 6
MULTICAST_BIT = 1
VLAN_TAG = b"\x81\x00"
VLANS = 4096
MAX_TABLE = 64
"""How many addresses a table may have before the device takes every frame of that kind, which the driver sorts out."""
STATE = {
    "modes": array(choice(*MODES), len(MODES)),
    "unicast": array(blob(6), MAX_TABLE),
    "multicast": array(blob(6), MAX_TABLE),
    "vlans": optional(array(number(0, VLANS - 1), VLANS)),
}


class ReceiveFilter:
    """Modes, a table of unicast and one of multicast addresses, and VLANs.

    Args:
        mac: the address of the card.
    """

    __slots__ = (
        "allmulti",
        "alluni",
        "mac",
        "multicast",
        "multicast_overflow",
        "nobcast",
        "nomulti",
        "nouni",
        "promisc",
        "unicast",
        "unicast_overflow",
        "vlans",
    )

    def __init__(self, mac: bytes) -> None:
        self.mac = mac
        self.reset(mac)

    def reset(self, mac: bytes) -> None:
        """Take everything, until the driver says what it wants."""
        self.mac = mac
        self.promisc = True
        self.allmulti = self.alluni = self.nomulti = self.nouni = self.nobcast = False
        self.unicast: frozenset[bytes] = frozenset()
        self.multicast: frozenset[bytes] = frozenset()
        self.unicast_overflow = self.multicast_overflow = False
        self.vlans: set[int] | None = None

    def set_tables(self, unicast: list[bytes], multicast: list[bytes]) -> None:
        """Take both tables of addresses; one that is too long stands for every address."""
        self.unicast_overflow = len(unicast) > MAX_TABLE
        self.multicast_overflow = len(multicast) > MAX_TABLE
        self.unicast = frozenset(() if self.unicast_overflow else unicast)
        self.multicast = frozenset(() if self.multicast_overflow else multicast)

    def wants(self, frame: memoryview) -> bool:
        """Say whether the driver wants a frame, given from its destination on."""
        if self.vlans is not None and frame[12:14] == VLAN_TAG:
            tag = int.from_bytes(frame[14:16], "big") & VLANS - 1
            if tag not in self.vlans:
                return False
        if self.promisc:
            return True
        destination = bytes(frame[:6])
        if destination == BROADCAST:
            return not self.nobcast
        if destination[0] & MULTICAST_BIT:
            return not self.nomulti and (self.allmulti or self.multicast_overflow or destination in self.multicast)
        if self.nouni:
            return False
        return destination == self.mac or self.alluni or self.unicast_overflow or destination in self.unicast

    def state(self) -> dict[str, Any]:
        """Return everything but the card's address, as JSON can carry it."""
        return {
            "modes": [mode for mode in MODES if getattr(self, mode)],
            "unicast": sorted(address.hex() for address in self.unicast),
            "multicast": sorted(address.hex() for address in self.multicast),
            "vlans": None if self.vlans is None else sorted(self.vlans),
        }

    def check_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the fields of a state, each checked; raises as `restore`."""
        return load_fields(type(self).__name__, STATE, state, others=())

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what a state says; raises DeviceStateError where it is none, and changes nothing."""
        fields = self.check_state(state)
        for mode in MODES:
            setattr(self, mode, mode in fields["modes"])
        self.unicast = frozenset(map(bytes, fields["unicast"]))
        self.multicast = frozenset(map(bytes, fields["multicast"]))
        self.vlans = None if fields["vlans"] is None else set(fields["vlans"])
