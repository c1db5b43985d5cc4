"""How virtio devices meet KVM: where `--transport` puts what `virtio_devices.py` makes.

`VirtioMachine` puts each device on a transport, and ties the two knots that make it fast: the guest's notifications end
in eventfds inside KVM (ioeventfd), and the device's interrupts begin there (irqfd), so that a vCPU does not leave the
guest for either.
"""

from __future__ import annotations

from kvm_interrupts import KvmInterrupts
from pyvmm_device import BusRange, ResourceExhausted
from pyvmm_kvm import IoEventAddress
from pyvmm_virtio.constants.features import VIRTIO_F_RING_PACKED
from pyvmm_virtio.errors import VirtioUsageError
from pyvmm_virtio.features import RING_FEATURES
from pyvmm_virtio.transport import QueueEvents
from virtio_devices import DeviceMaker, explain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol

    from minimal_vmm import Machine
    from pyvmm_device import EdgeInterrupt, EventFdGroup, PciRoot
    from pyvmm_loader.acpi.aml import Device
    from pyvmm_loader.acpi.devices.pci import PciHost
    from pyvmm_virtio.device import VirtioDevice
    from pyvmm_virtio.transport import VirtioMmio, VirtioPci
    from virtio_devices import TerminalPort

    class Interrupts(Protocol):
        """What hands out a machine's interrupts."""

        def edge(self, gsi: int, /) -> EdgeInterrupt:
            """Return a line that is triggered."""

        def group(self, count: int, /) -> EventFdGroup:
            """Return so many messages."""


MMIO_START, MMIO_SIZE = 0xD0000000, 0x1000
MMIO_IRQS = (5, 6, 7, 9, 10, 11, 14, 15)
"""Of a PC's lines those that no device of ours has; a guest that is told of no others knows them."""
MMIO_SLOTS = tuple((MMIO_START + number * MMIO_SIZE, irq) for number, irq in enumerate(MMIO_IRQS))
PCI_MEMORY, PCI_PORTS = (0xC0000000, 0x10000000), (0x1000, 0xF000)
"""What the guest may give to PCI devices, as (start, size) pairs, where it is told by ACPI."""


class VirtioMachine:
    """The virtio devices of one machine.

    Args:
        machine: of which these are the devices.
        root: the PCI bus for `--transport pci`, where the machine has one.
        interrupts: how the machine takes their interrupts; by default as `KvmInterrupts`, of their own.
        slots: the address and the line that each device of `--transport mmio` can have.
        slot_size: how many bytes are there.

    Attributes:
        devices: all of them, in the order of the command line's help.
        places: the address and the interrupt of each device of `--transport mmio`.
        terminal: the console that takes what is typed, where `--console` asks for it.
    """

    def __init__(
        self,
        machine: Machine,
        root: PciRoot | None = None,
        *,
        interrupts: Interrupts | None = None,
        slots: Sequence[tuple[int, int]] = MMIO_SLOTS,
        slot_size: int = MMIO_SIZE,
    ) -> None:
        self.machine = machine
        self.asked = machine.arguments
        self.interrupts: Interrupts = interrupts or machine.own(KvmInterrupts(machine.vm, machine.loop))
        self.slots = slots
        self.slot_size = slot_size
        self.places: list[tuple[int, int]] = []
        self.terminal: TerminalPort | None = None
        self.devices: list[VirtioDevice] = []
        self.ring_features = RING_FEATURES
        if self.asked.ring == "split":
            self.ring_features &= ~(1 << VIRTIO_F_RING_PACKED)
        self.root = root
        if self.asked.transport == "pci" and root is None:
            from pyvmm_device import PciRoot

            self.root = PciRoot(machine.io, on_reset=machine.on_reset)
        self.add_devices()

    def add_devices(self) -> None:
        """Make what the command line asks for, and put it on its transport."""
        maker = DeviceMaker(self.machine, self.ring_features)
        for name, make in maker.wanted():
            try:
                device = make()
            except (OSError, ValueError, VirtioUsageError) as error:
                raise VirtioUsageError(f"{name}: {explain(error)}") from error
            self.add(device)
        self.terminal = maker.terminal

    def add(self, device: VirtioDevice) -> None:
        """Put a device on the transport that was asked for."""
        (self.add_pci if self.asked.transport == "pci" else self.add_mmio)(device)
        self.devices.append(device)

    def add_mmio(self, device: VirtioDevice) -> None:
        """Give it a page and a line, of which the guest has to be told."""
        from pyvmm_virtio.transport import VirtioMmio

        count = len(self.devices)
        if count == len(self.slots):
            raise VirtioUsageError(f"--transport mmio has lines for {count} devices: use --transport pci")
        base, irq = self.slots[count]
        transport = VirtioMmio(device, self.machine.memory, self.interrupts.edge(irq))
        self.machine.own(AtTheEnd(transport.reset))
        self.machine.io.register_mmio(transport, [BusRange(base, self.slot_size)])
        self.places.append((base, irq))
        self.events(transport).move(base)

    def add_pci(self, device: VirtioDevice) -> None:
        """Make it a PCI function; the guest finds it on the bus, and moves its registers where it wants them."""
        from pyvmm_virtio.transport import VirtioPci

        transport = VirtioPci(
            device, self.machine.memory, self.interrupts.group(len(device.queues) + 1), interrupt_pin=0
        )
        transport.on_notify_moved = self.events(transport).move
        self.machine.own(AtTheEnd(transport.reset))
        assert self.root is not None, "add_pci is for a machine with a bus"
        try:
            self.root.add(transport)
        except ResourceExhausted as error:
            raise VirtioUsageError(f"--transport pci has slots for {len(self.devices)} devices: use fewer") from error

    def words(self) -> list[str]:
        """Return what the kernel's command line has to say of them."""
        return [f"virtio_mmio.device={self.slot_size >> 10}K@{base:#x}:{irq}" for base, irq in self.places]

    def described(self) -> tuple[list[Device], PciHost | None]:
        """Return what ACPI has to say of them: devices with an address of their own, and the bus that others are on."""
        from pyvmm_loader.acpi.devices.pci import PciHost
        from pyvmm_loader.acpi.devices.virtio_mmio import virtio_mmio

        devices = [virtio_mmio(number, base, irq) for number, (base, irq) in enumerate(self.places)]
        return devices, PciHost(mmio32=PCI_MEMORY, io=PCI_PORTS) if self.root else None

    def events(self, transport: VirtioMmio | VirtioPci) -> QueueEvents:
        """Make the eventfds that the guest's notifications of a transport's queues end in, in the device's own loop."""
        loop = transport.device.loop or self.machine.loop
        events: QueueEvents = self.machine.own(QueueEvents(transport, loop, self.assign, self.deassign))
        return events

    def assign(self, address: int, length: int, fd: int, datamatch: int | None) -> None:
        """Let KVM write to the eventfd when the guest notifies."""
        self.machine.vm.register_ioevent(fd, IoEventAddress.Mmio(address), match_of(length, datamatch))

    def deassign(self, address: int, length: int, fd: int, datamatch: int | None) -> None:
        """Undo it."""
        self.machine.vm.unregister_ioevent(fd, IoEventAddress.Mmio(address), match_of(length, datamatch))


def match_of(length: int, datamatch: int | None) -> tuple[int, int] | None:
    """Return the value and width of a notification, as KVM wants to know them."""
    return None if datamatch is None else (datamatch, length)


class AtTheEnd:
    """Something to do when the machine is closed: devices let go of the guest's memory, descriptors are closed."""

    def __init__(self, do: Callable[[], object]) -> None:
        self.close = do
