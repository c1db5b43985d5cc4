"""A driver's way to a device behind the PCI transport, from finding the function to its vectors."""

from __future__ import annotations

from pyvmm_device.pci import config_space as cs
from pyvmm_virtio.constants import pci as p
from pyvmm_virtio.driver.registers import Port, wait_while
from pyvmm_virtio.transport.pci import FIRST_DEVICE_ID, VENDOR_ID

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_device.io_manager import IoManager

BARS_AT, WIDE_BARS_AT = 0xE0000000, 1 << 40
MESSAGES_AT = 0xFEE00000
ENABLE = 0x80000000


class PciPort(Port):
    """A function, found through ports 0xcf8 and 0xcfc.

    Args:
        io: the machine's ports and memory.
        msix: whether to use MSI-X, if the function has it.

    Raises:
        LookupError: there is no virtio device on bus 0.
    """

    def __init__(self, io: IoManager, *, msix: bool = True) -> None:
        super().__init__(io)
        self.slot = self._find()
        self.device_type = self.config_get(cs.DEVICE_ID, 2) - FIRST_DEVICE_ID
        self.bars = self._place_bars()
        self.areas: dict[int, tuple[int, int]] = {}
        self.shared: dict[int, tuple[int, int]] = {}
        self.multiplier = self.window = self._msix = 0
        self._notify_at: dict[int, int] = {}
        self._read_capabilities()
        self.vectors = self._enable_msix() if msix and self._msix else 0
        self.common = self.areas[p.VIRTIO_PCI_CAP_COMMON_CFG][0]

    # configuration space

    def config_get(self, offset: int, size: int) -> int:
        """Read from the configuration space."""
        self._config_address(offset)
        data = memoryview(bytearray(size))
        self.io.pio_read(0xCFC + (offset & 3), data)
        return int.from_bytes(data, "little")

    def config_set(self, offset: int, value: int, size: int) -> None:
        """Write to the configuration space."""
        self._config_address(offset)
        self.io.pio_write(0xCFC + (offset & 3), memoryview(value.to_bytes(size, "little")))

    def _config_address(self, offset: int) -> None:
        address = ENABLE | self.slot << 11 | offset & 0xFC
        self.io.pio_write(0xCF8, memoryview(address.to_bytes(4, "little")))

    def _find(self) -> int:
        for self.slot in range(32):
            device = self.config_get(cs.DEVICE_ID, 2)
            # 4.1.2.2: "in the range 0x1040 to 0x107f"
            if self.config_get(cs.VENDOR_ID, 2) == VENDOR_ID and 0x1040 <= device <= 0x107F:
                return self.slot
        raise LookupError("no virtio device on PCI bus 0")

    def _place_bars(self) -> dict[int, int]:
        """Size every BAR and give it a place: those of 64 bits above 4 GiB."""
        bars: dict[int, int] = {}
        self.sizes: dict[int, int] = {}
        places = {4: BARS_AT, 8: WIDE_BARS_AT}
        index = 0
        while index < 6:
            offset = cs.BAR0 + 4 * index
            width = 8 if self.config_get(offset, 4) & 6 == 4 else 4
            for half in range(0, width, 4):
                self.config_set(offset + half, 0xFFFFFFFF, 4)
            value = sum(self.config_get(offset + half, 4) << 8 * half for half in range(0, width, 4))
            size = -(value & ~0xF) & (1 << 8 * width) - 1
            if size:
                bars[index] = (places[width] + size - 1) & -size
                self.sizes[index] = size
                places[width] = bars[index] + size
                for half in range(0, width, 4):
                    self.config_set(offset + half, bars[index] >> 8 * half & 0xFFFFFFFF, 4)
            index += width // 4
        self.config_set(cs.COMMAND, cs.COMMAND_MEMORY | cs.COMMAND_MASTER, 2)
        return bars

    def _read_capabilities(self) -> None:
        at = self.config_get(cs.CAPABILITIES, 1)
        while at:
            kind = self.config_get(at, 1)
            if kind == cs.CAP_MSIX:
                self._msix = at
            elif kind == cs.CAP_VENDOR:
                self._read_capability(at)
            at = self.config_get(at + 1, 1)

    def _read_capability(self, at: int) -> None:
        kind = self.config_get(at + 3, 1)
        bar = self.config_get(at + p.VIRTIO_PCI_CAP_BAR, 1)
        offset = self.config_get(at + p.VIRTIO_PCI_CAP_OFFSET, 4)
        length = self.config_get(at + p.VIRTIO_PCI_CAP_LENGTH, 4)
        if kind == p.VIRTIO_PCI_CAP_PCI_CFG:
            self.window = at
        elif kind == p.VIRTIO_PCI_CAP_SHARED_MEMORY_CFG:
            offset |= self.config_get(at + 16, 4) << 32
            length |= self.config_get(at + 20, 4) << 32
            self.shared[self.config_get(at + 5, 1)] = self.bars[bar] + offset, length
        else:
            self.areas.setdefault(kind, (self.bars[bar] + offset, length))
            if kind == p.VIRTIO_PCI_CAP_NOTIFY_CFG:
                self.multiplier = self.config_get(at + 16, 4)

    def _enable_msix(self) -> int:
        """Let vector n send the message n."""
        count = (self.config_get(self._msix + 2, 2) & 0x7FF) + 1
        place = self.config_get(self._msix + 4, 4)
        table = self.bars[place & 7] + (place & ~7)
        for vector in range(count):
            entry = table + 16 * vector
            for at, value in ((0, MESSAGES_AT), (4, 0), (8, vector), (12, 0)):
                self.store(entry + at, value, 4)
        self.config_set(self._msix + 2, 0x8000, 2)
        return count

    # the device

    def get(self, offset: int, size: int) -> int:
        """Read a field of the common configuration."""
        return self.load(self.common + offset, size)

    def set(self, offset: int, value: int, size: int) -> None:
        """Write a field of the common configuration."""
        self.store(self.common + offset, value, size)

    def status(self) -> int:
        """Read the status."""
        return self.get(p.VIRTIO_PCI_COMMON_STATUS, 1)

    def set_status(self, status: int) -> None:
        """Write the status."""
        self.set(p.VIRTIO_PCI_COMMON_STATUS, status, 1)

    def device_features(self) -> int:
        """Return what the device offers."""
        value = 0
        for half in (0, 1):
            self.set(p.VIRTIO_PCI_COMMON_DFSELECT, half, 4)
            value |= self.get(p.VIRTIO_PCI_COMMON_DF, 4) << 32 * half
        return value

    def set_driver_features(self, features: int) -> None:
        """Accept some of it."""
        for half in (0, 1):
            self.set(p.VIRTIO_PCI_COMMON_GFSELECT, half, 4)
            self.set(p.VIRTIO_PCI_COMMON_GF, features >> 32 * half & 0xFFFFFFFF, 4)

    def _select(self, index: int) -> None:
        self.set(p.VIRTIO_PCI_COMMON_Q_SELECT, index, 2)

    def queue_max(self, index: int) -> int:
        """Return the largest size of a queue; 0 where there is none."""
        self._select(index)
        return self.get(p.VIRTIO_PCI_COMMON_Q_SIZE, 2)

    def queue_enabled(self, index: int) -> bool:
        """Say whether a queue is enabled."""
        self._select(index)
        return bool(self.get(p.VIRTIO_PCI_COMMON_Q_ENABLE, 2))

    def setup_queue(self, index: int, size: int, desc: int, driver_area: int, device_area: int) -> None:
        """Say how large a queue is and where, which vector it has, and enable it."""
        self._select(index)
        self.set(p.VIRTIO_PCI_COMMON_Q_SIZE, size, 2)
        places = (
            (p.VIRTIO_PCI_COMMON_Q_DESCLO, desc),
            (p.VIRTIO_PCI_COMMON_Q_AVAILLO, driver_area),
            (p.VIRTIO_PCI_COMMON_Q_USEDLO, device_area),
        )
        for low, addr in places:
            self.set(low, addr & 0xFFFFFFFF, 4)
            self.set(low + 4, addr >> 32, 4)
        if self.vectors:
            # vector 0 is the configuration's, and queues share the last if there are not enough
            self.map_vector(p.VIRTIO_PCI_COMMON_MSIX, 0)
            self.map_vector(p.VIRTIO_PCI_COMMON_Q_MSIX, min(index + 1, self.vectors - 1))
        self.set(p.VIRTIO_PCI_COMMON_Q_ENABLE, 1, 2)

    def map_vector(self, register: int, vector: int) -> None:
        """Map an event to a vector and see that it worked, as 4.1.5.1.2.2 asks; raises LookupError."""
        self.set(register, vector, 2)
        if self.get(register, 2) != vector:
            raise LookupError(f"the device has no vector {vector}")

    def reset_queue(self, index: int) -> None:
        """Reset a queue."""
        self._select(index)
        self.set(p.VIRTIO_PCI_COMMON_Q_RESET, 1, 2)
        wait_while(lambda: self.get(p.VIRTIO_PCI_COMMON_Q_RESET, 2))

    def notify(self, index: int, value: int, size: int) -> None:
        """Kick a queue."""
        addr = self._notify_at.get(index)
        if addr is None:
            self._select(index)
            offset = self.get(p.VIRTIO_PCI_COMMON_Q_NOFF, 2) * self.multiplier
            addr = self._notify_at[index] = self.areas[p.VIRTIO_PCI_CAP_NOTIFY_CFG][0] + offset
        self.store(addr, value, size)

    def take_events(self) -> int:
        """Return why the device interrupts: 1 for queues, 2 for the configuration; reading acknowledges it."""
        return self.load(self.areas[p.VIRTIO_PCI_CAP_ISR_CFG][0], 1)

    def generation(self) -> int:
        """Return the generation of the configuration."""
        return self.get(p.VIRTIO_PCI_COMMON_CFGGENERATION, 1)

    def config_address(self) -> int:
        """Return where the configuration space is; raises LookupError where the device has none."""
        if p.VIRTIO_PCI_CAP_DEVICE_CFG not in self.areas:
            raise LookupError("the device has no configuration space")
        return self.areas[p.VIRTIO_PCI_CAP_DEVICE_CFG][0]

    def shared_memory(self, id_: int) -> tuple[int, int] | None:
        """Return guest address and length of a shared memory region, or None."""
        return self.shared.get(id_)

    # through configuration space

    def window_load(self, bar: int, offset: int, size: int) -> int:
        """Read a register through the window in the configuration space (4.1.4.9)."""
        self._window_to(bar, offset, size)
        return self.config_get(self.window + 16, size)

    def window_store(self, bar: int, offset: int, value: int, size: int) -> None:
        """Write a register through the window."""
        self._window_to(bar, offset, size)
        self.config_set(self.window + 16, value, size)

    def _window_to(self, bar: int, offset: int, size: int) -> None:
        self.config_set(self.window + p.VIRTIO_PCI_CAP_BAR, bar, 1)
        self.config_set(self.window + p.VIRTIO_PCI_CAP_OFFSET, offset, 4)
        self.config_set(self.window + p.VIRTIO_PCI_CAP_LENGTH, size, 4)
