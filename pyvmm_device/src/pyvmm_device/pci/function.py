"""A PCI function: what every device on the bus is built on.

Threads: invariants. A function's lock protects its configuration space, MSI-X table and what it wants of INTx, and it
is held for these only: whoever watches the registers is called when a write is over and the lock released. What a write
has to have brought about when it returns, namely where BARs answer, is done by its own thread then, from the registers
as they are and with a ticket of the bus (`bus.Claim`), so that of several threads the one that looked last has the
say. What goes out to lines and messages is in the lock's outbox, in the order of what happened under the lock.
"""

from __future__ import annotations

from pyvmm_device.bus import Claim, place
from pyvmm_device.errors import DeviceStateError, PciError
from pyvmm_device.locks import DeferringLock
from pyvmm_device.pci import config_space as cs
from pyvmm_device.pci.bar import ROM_INDEX, Bar
from pyvmm_device.pci.config_space import ConfigSpace
from pyvmm_device.pci.msi import MsiCapability
from pyvmm_device.pci.msix import MsixCapability
from pyvmm_device.state import FLAG, PART, Stateful, blob, check_part, load_fields, save_parts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from typing import Any

    from pyvmm_device.bus import BusRange, Device
    from pyvmm_device.interrupt import SetLevel
    from pyvmm_device.interrupt_group import InterruptSourceGroup
    from pyvmm_device.pci.bus import PciBus


class PciFunction(Stateful):
    r"""One function with its header, BARs, capabilities and interrupts.

    Args:
        vendor_id: who made it.
        device_id: what it is.
        class_code: class, subclass and programming interface, 24 bits: 0x020000 is Ethernet.
        revision: of the device.
        subsystem_vendor: who made the card.
        subsystem_id: which card.
        interrupt_pin: 1 to 4 for INTA to INTD, or 0 for none.
        express: whether it has a configuration space of 4096 bytes.

    Attributes:
        config: the configuration space.
        bars: the ranges, by their index.
        msi: the MSI capability, if there is one.
        msix: the MSI-X capability, if there is one.
        bus: the bus it is on, or None.
        place: its device number on that bus, and its function number.

    >>> from pyvmm_device import Ram
    >>> function = PciFunction(0x1AF4, 0x1110, 0x050000)
    >>> function.add_bar(0, 0x1000, Ram(0x1000))
    <Bar 0: 0x1000 bytes of memory, not mapped>
    >>> function.config_write(0x10, memoryview(b"\xff" * 4))
    >>> answer = memoryview(bytearray(4))
    >>> function.config_read(0x10, answer)
    >>> bytes(answer).hex()  # the size, as guests ask for it
    '00f0ffff'
    """

    def __init__(
        self,
        vendor_id: int,
        device_id: int,
        class_code: int,
        *,
        revision: int = 0,
        subsystem_vendor: int = 0,
        subsystem_id: int = 0,
        interrupt_pin: int = 0,
        express: bool = False,
    ) -> None:
        if not 0 <= interrupt_pin <= 4:
            raise PciError(f"interrupt pin {interrupt_pin}: 1 to 4 are INTA to INTD, 0 is none")
        self.lock: DeferringLock = DeferringLock()
        self.config = config = ConfigSpace(4096 if express else 256)
        config.set(cs.VENDOR_ID, 2, vendor_id)
        config.set(cs.DEVICE_ID, 2, device_id)
        config.set(cs.COMMAND, 2, 0, cs.COMMAND_WRITABLE)
        config.set(cs.STATUS, 2, 0, 0, cs.STATUS_CLEARS)
        config.vary(cs.STATUS, 1, cs.STATUS_INTERRUPT)
        config.set(cs.REVISION, 1, revision)
        config.set(cs.CLASS, 3, class_code)
        config.set(cs.CACHE_LINE, 1, 0, 0xFF)
        config.set(cs.LATENCY, 1, 0, 0xFF)
        config.set(cs.SUBSYSTEM_VENDOR, 2, subsystem_vendor)
        config.set(cs.SUBSYSTEM_ID, 2, subsystem_id)
        config.set(cs.INTERRUPT_LINE, 1, 0, 0xFF)
        config.set(cs.INTERRUPT_PIN, 1, interrupt_pin)
        config.watch(cs.COMMAND, 2, on_write=self._on_command)
        config.watch(cs.BAR0, 24, on_write=self._on_bar)
        config.watch(cs.ROM, 4, on_write=self._on_bar)
        self.bars: dict[int, Bar] = {}
        self.msi: MsiCapability | None = None
        self.msix: MsixCapability | None = None
        self.bus: PciBus | None = None
        self.place = (0, 0)
        self._intx: SetLevel | None = None
        self._intx_wanted = False
        self._intx_asserted = False
        self._first = b""

    secondary: PciBus | None = None
    """The bus behind it, where it is a bridge."""

    # building

    def add_bar(
        self,
        index: int,
        size: int,
        device: Device,
        *,
        io: bool = False,
        wide: bool = False,
        prefetchable: bool = False,
    ) -> Bar:
        """Give the function a range in which a device answers; arguments and errors are those of `Bar`."""
        if index in self.bars or (index - 1 in self.bars and self.bars[index - 1].wide):
            raise PciError(f"BAR {index} is there already")
        if wide and index + 1 in self.bars:
            raise PciError(f"BAR {index} has 64 bits, and BAR {index + 1} is there already")
        bar = Bar(self.config, index, size, device, io=io, wide=wide, prefetchable=prefetchable)
        self._claim(bar)
        return bar

    def add_rom(self, content: bytes) -> Bar:
        """Give the function an expansion ROM, which firmware runs; padded to a power of two."""
        from pyvmm_device.ram import Ram

        size = max(2048, 1 << (len(content) - 1).bit_length())
        bar = Bar(self.config, ROM_INDEX, size, Ram(content.ljust(size, b"\xff"), writable=False))
        self._claim(bar)
        return bar

    def add_msi(self, group: InterruptSourceGroup, *, per_vector_masking: bool = True) -> MsiCapability:
        """Give the function message-signalled interrupts: 1, 2, 4, 8, 16 or 32, as many as the group has."""
        self.msi = MsiCapability(self, group, per_vector_masking)
        self.msi.refresh()
        return self.msi

    def add_msix(self, group: InterruptSourceGroup, bar: int = 1) -> MsixCapability:
        """Give the function MSI-X, with as many vectors as the group has; table and pending bits get their own BAR."""
        self.msix = MsixCapability(self, group)
        self.msix.add_bar(bar)
        return self.msix

    # the bus's side

    def attach(self, bus: PciBus, slot: int, number: int) -> None:
        """Be on a bus: BARs are registered there, and INTx goes to its lines. Called by `PciBus`, with no lock."""
        pin = self.config.data[cs.INTERRUPT_PIN]
        intx = bus.input(slot, pin) if pin else None
        with self.lock:
            taken = self.bus is not None
            if not taken:
                self.bus, self.place, self._intx, self._intx_asserted = bus, (slot, number), intx, False
                self._first = self._first or bytes(self.config.data)
                self.update_intx()
        if taken:
            raise PciError(f"{self!r} is on a bus already, at {self.address}")
        for bar in list(self.bars.values()):
            self._claim(bar)
        self.remap()

    def _claim(self, bar: Bar) -> None:
        """Have a BAR, and of the bus, if the function is on one, the means to let it answer somewhere."""
        self.bars[bar.index] = bar
        if self.bus is not None:
            io = self.bus.io
            bar.claim = Claim(io.pio if bar.io else io.mmio, bar.device, lambda: self.bar_moved(bar))

    def detach(self) -> None:
        """Leave the bus: ranges are free again, and INTx is low."""
        with self.lock:
            if self._intx is not None and self._intx_asserted:
                self.lock.after(self._intx, False)
            self.bus, self._intx, self._intx_asserted = None, None, False
        claims = [bar.claim for bar in self.bars.values() if bar.claim is not None]
        for bar in self.bars.values():
            bar.claim = None
        place(lambda: [(claim, None) for claim in claims])

    @property
    def address(self) -> str:
        """Bus, device and function as ``lspci`` shows them, or "not on a bus"."""
        if self.bus is None:
            return "not on a bus"
        return f"{self.bus.number:02x}:{self.place[0]:02x}.{self.place[1]}"

    def config_read(self, offset: int, buffer: memoryview) -> None:
        """Take a guest's read of the configuration space."""
        self.config.before_read(offset, len(buffer))
        with self.lock:
            self.config.load(offset, buffer)

    def config_write(self, offset: int, data: memoryview) -> None:
        """Take a guest's write to the configuration space."""
        with self.lock:
            self.config.store(offset, data)
        self.config.after_write(offset, len(data))

    def _on_command(self, offset: int, length: int) -> None:  # noqa: ARG002 - both bytes belong together
        self.remap()
        # whoever wants it from now on finds the command as it is now
        if self._intx_wanted or self._intx_asserted:
            with self.lock:
                self.update_intx()

    def _on_bar(self, offset: int, length: int) -> None:  # noqa: ARG002 - any of them may have moved
        self.remap()

    def places(self) -> Iterator[tuple[Claim, BusRange | None]]:
        """Say where each BAR should answer now: as its register says, if the bridges before it let accesses through.

        A bridge says so of what is behind it, too.
        """
        for bar in list(self.bars.values()):
            bus, claim, where = self.bus, bar.claim, bar.wanted()
            if claim is not None:
                yield claim, where if where is not None and bus is not None and bus.forwards(where, bar.io) else None

    def remap(self) -> None:
        """Let the ranges answer where the registers say now, all in one step: they may change places."""
        place(self.places)

    def bar_moved(self, bar: Bar) -> None:
        """Hear that a BAR's range began, or ceased, to answer somewhere: for what else is bound to the address.

        Called with no lock, by one thread at a time, not always the one that moved it: ``bar.mapped`` says where it is.
        """

    def unmap(self) -> None:
        """Let no range answer until the next change of a register; whoever restores several functions begins so."""
        place(lambda: [(claim, None) for claim, _ in self.places()])

    # interrupts

    def set_intx(self, active: bool) -> None:
        """Assert or clear INTx, as far as the guest did not choose messages or disable it."""
        with self.lock:
            self._intx_wanted = active
            self.update_intx()

    def update_intx(self) -> None:
        """Bring INTx, and what the status register says of it, to what the registers allow; under the lock."""
        status = self.config.data[cs.STATUS] & ~cs.STATUS_INTERRUPT
        messages = (self.msi is not None and self.msi.enabled) or (self.msix is not None and self.msix.enabled)
        wanted = self._intx_wanted and not messages
        self.config.data[cs.STATUS] = status | cs.STATUS_INTERRUPT * wanted
        asserted = wanted and not self.config.get(cs.COMMAND, 2) & cs.COMMAND_INTX_DISABLE
        if asserted != self._intx_asserted and self._intx is not None:
            self._intx_asserted = asserted
            self.lock.after(self._intx, asserted)

    def interrupt(self, vector: int = 0) -> None:
        """Interrupt the guest the way it chose: MSI-X, MSI, or by asserting INTx."""
        if self.msix is not None and self.msix.enabled:
            self.msix.group.trigger(vector)
        elif self.msi is not None and self.msi.enabled:
            self.msi.group.trigger(vector % self.msi.vectors)
        else:
            self.set_intx(True)

    @property
    def bus_master(self) -> bool:
        """Whether the guest allows the device to reach memory."""
        return bool(self.config.data[cs.COMMAND] & cs.COMMAND_MASTER)

    # reset and state

    def reset(self) -> None:
        """Be as after power-on: BARs at nowhere, decoding and interrupts off."""
        with self.lock:
            if self._first:
                multifunction = self.config.data[cs.HEADER_TYPE]
                self.config.data[:] = self._first
                self.config.data[cs.HEADER_TYPE] = multifunction
            self._intx_wanted = False
            if self.msi is not None:
                self.msi.refresh()
            if self.msix is not None:
                self.msix.reset()
            self.update_intx()
        self.remap()
        self.device_reset()

    def device_reset(self) -> None:
        """Reset what a subclass adds; called with no lock."""

    def device_restored(self) -> None:
        """Bring up what a subclass adds, now that registers and parts are as the state says; called with no lock."""

    def state_parts(self) -> dict[str, Any]:
        """Return what has a state of its own (``state()``, ``restore()``), by name; a subclass adds to it."""
        parts: dict[str, Any] = {
            f"bar{bar.index}": bar.device for bar in self.bars.values() if hasattr(bar.device, "restore")
        }
        if self.msi is not None:
            parts["msi"] = self.msi
        if self.msix is not None:
            parts["msix"] = self.msix
        return parts

    def state(self) -> dict[str, Any]:
        """Return the configuration space, the interrupts, and the state of each BAR's device that has one."""
        parts = save_parts(type(self).__name__, self.state_parts(), version=self.STATE_VERSION)
        with self.lock:
            return {**parts, "config": bytes(self.config.data).hex(), "intx": self._intx_wanted}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Become what a state says; BARs are registered where they were.

        Raises:
            DeviceStateError: it is of another device, or of one put together differently. Nothing changed.
        """
        fields = self.check_state(state)
        before = self.state()
        try:
            self._become(fields["config"], state)
        except BaseException:
            self._become(self.check_state(before)["config"], before)
            raise

    def check_state(self, state: Mapping[str, Any]) -> dict[str, Any]:
        """Return the function's own fields of a state, each checked, and those of its parts; raises as `restore`."""
        name = type(self).__name__
        kinds = {"config": blob(len(self.config)), "intx": FLAG, "parts": PART}
        fields = load_fields(name, kinds, state, version=self.STATE_VERSION, others=())
        parts = self.state_parts()
        if set(fields["parts"]) != set(parts):
            raise DeviceStateError(name, f"it is not of these parts: {', '.join(parts) or 'none'}")
        different = self.config.differs_read_only(bytes(fields["config"]))
        if different is not None:
            raise DeviceStateError(name, f"its configuration space differs at {different:#x} in what cannot be written")
        for part, device in parts.items():
            check_part(device, fields["parts"][part])
        return fields

    def _become(self, config: bytearray, state: Mapping[str, Any]) -> None:
        for name, part in self.state_parts().items():
            part.restore(state["parts"][name])
        with self.lock:
            self.config.data[:] = config
            self._intx_wanted = state["intx"]
            if self.msi is not None:
                self.msi.refresh()
            if self.msix is not None:
                self.msix.refresh()
            self.update_intx()
        self.remap()
        self.device_restored()

    def __repr__(self) -> str:
        ids = f"{self.config.get(cs.VENDOR_ID, 2):04x}:{self.config.get(cs.DEVICE_ID, 2):04x}"
        return f"<{type(self).__name__} {ids} {self.address}>"
