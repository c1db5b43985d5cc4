"""The control queue of the network device: what the driver sets while it runs (VIRTIO 1.3, 5.1.6.5)."""

from __future__ import annotations

from pyvmm_virtio.constants import net as c
from pyvmm_virtio.devices.net.filter import MAX_TABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_virtio.devices.net.device import Net

MAX_COMMAND = 65536
"""No command is longer: two tables of addresses of a size that any driver would send."""
COMMAND_BYTES = 1 << 18
"""What a command counts for in a slice: the kernel may have to set up every queue of a tap for it."""
MODES = {
    c.VIRTIO_NET_CTRL_RX_PROMISC: "promisc",
    c.VIRTIO_NET_CTRL_RX_ALLMULTI: "allmulti",
    c.VIRTIO_NET_CTRL_RX_ALLUNI: "alluni",
    c.VIRTIO_NET_CTRL_RX_NOMULTI: "nomulti",
    c.VIRTIO_NET_CTRL_RX_NOUNI: "nouni",
    c.VIRTIO_NET_CTRL_RX_NOBCAST: "nobcast",
}
EXTRA_MODES = range(c.VIRTIO_NET_CTRL_RX_ALLUNI, c.VIRTIO_NET_CTRL_RX_NOBCAST + 1)


class Control:
    """Carries out the commands for a device."""

    def __init__(self, device: Net) -> None:
        self._device = device

    def run(self, command: bytes) -> int:
        """Carry a command out, given from its class on; returns the answer, ``VIRTIO_NET_OK`` or ``_ERR``."""
        kinds = {
            c.VIRTIO_NET_CTRL_RX: (c.VIRTIO_NET_F_CTRL_RX, self._mode),
            c.VIRTIO_NET_CTRL_MAC: (c.VIRTIO_NET_F_CTRL_VQ, self._mac),
            c.VIRTIO_NET_CTRL_VLAN: (c.VIRTIO_NET_F_CTRL_VLAN, self._vlan),
            c.VIRTIO_NET_CTRL_ANNOUNCE: (c.VIRTIO_NET_F_GUEST_ANNOUNCE, self._announced),
            c.VIRTIO_NET_CTRL_MQ: (c.VIRTIO_NET_F_MQ, self._queue_pairs),
            c.VIRTIO_NET_CTRL_GUEST_OFFLOADS: (c.VIRTIO_NET_F_CTRL_GUEST_OFFLOADS, self._offloads),
        }
        if len(command) < 2 or command[0] not in kinds:
            return c.VIRTIO_NET_ERR
        feature, function = kinds[command[0]]
        done = self._device.negotiated(feature) and function(command[1], command[2:])
        return c.VIRTIO_NET_OK if done else c.VIRTIO_NET_ERR

    def _mode(self, command: int, data: bytes) -> bool:
        extra = command in EXTRA_MODES and not self._device.negotiated(c.VIRTIO_NET_F_CTRL_RX_EXTRA)
        if command not in MODES or extra or len(data) != 1 or data[0] > 1:
            return False
        setattr(self._device.filter, MODES[command], bool(data[0]))
        return True

    def _mac(self, command: int, data: bytes) -> bool:
        device = self._device
        if command == c.VIRTIO_NET_CTRL_MAC_ADDR_SET:
            if len(data) != 6 or not device.negotiated(c.VIRTIO_NET_F_CTRL_MAC_ADDR):
                return False
            device.set_mac(data)
            return True
        if command != c.VIRTIO_NET_CTRL_MAC_TABLE_SET or not device.negotiated(c.VIRTIO_NET_F_CTRL_RX):
            return False
        tables = []
        for _ in range(2):
            count, rest = int.from_bytes(data[:4], "little"), data[4:]
            if len(data) < 4 or count * 6 > len(rest):
                return False
            # one more than a table has says that it is too long, however long: then its addresses are not looked at
            end = 6 * min(count, MAX_TABLE + 1)
            tables.append([rest[at : at + 6] for at in range(0, end, 6)])
            data = rest[count * 6 :]
        if data:
            return False
        device.filter.set_tables(*tables)
        return True

    def _vlan(self, command: int, data: bytes) -> bool:
        vlans = self._device.filter.vlans
        tag = int.from_bytes(data, "little")
        if vlans is None or len(data) != 2 or tag > 4095:
            return False
        if command == c.VIRTIO_NET_CTRL_VLAN_ADD:
            vlans.add(tag)
        elif command == c.VIRTIO_NET_CTRL_VLAN_DEL:
            vlans.discard(tag)
        else:
            return False
        return True

    def _announced(self, command: int, data: bytes) -> bool:
        if command != c.VIRTIO_NET_CTRL_ANNOUNCE_ACK or data:
            return False
        self._device.set_status(c.VIRTIO_NET_S_ANNOUNCE, False)
        return True

    def _queue_pairs(self, command: int, data: bytes) -> bool:
        pairs = int.from_bytes(data, "little")
        if command != c.VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET or len(data) != 2:
            return False
        return self._device.set_queue_pairs(pairs)

    def _offloads(self, command: int, data: bytes) -> bool:
        offloads = int.from_bytes(data, "little")
        if command != c.VIRTIO_NET_CTRL_GUEST_OFFLOADS_SET or len(data) != 8:
            return False
        return self._device.set_offloads(offloads)
