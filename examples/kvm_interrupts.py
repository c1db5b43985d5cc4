"""How KVM delivers the interrupts that pyvmm_device speaks of: irqfd, resamplefd and GSI routing behind its protocols.

Neither package knows of the other; this is where a VMM lets them meet. Lines of the interrupt controllers come as
objects to give to a device, and MSI or MSI-X as an `EventFdGroup` whose router this is: the guest's driver writes a
message into the device's table, and from then on an eventfd turns into that message without a detour through here.
"""

from __future__ import annotations

from _thread import RLock

from pyvmm_device import EventFdGroup, EventFdInterrupt, EventFdLevelInterrupt, IdPool
from pyvmm_kvm import IrqRoute, IrqRouting

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from pyvmm_device import EventLoop, MsiIrqConfig
    from pyvmm_kvm import VmFd


class KvmInterrupts:
    """The interrupts of one virtual machine.

    Args:
        vm: with its interrupt controllers, in KVM or split.
        loop: in which ends of level interrupts are taken.
        lines: the routes of the controllers' lines; by default those that KVM begins with. Give an empty table where
            the IOAPIC is not KVM's.
        gsis: the numbers that messages may have, above those of the lines.
    """

    def __init__(
        self, vm: VmFd, loop: EventLoop, lines: IrqRouting | None = None, gsis: Iterable[int] = range(24, 1024)
    ) -> None:
        self.vm = vm
        self.loop = loop
        self.lines = IrqRouting.legacy() if lines is None else lines
        self.pool = IdPool("GSIs of messages", gsis)
        self.gsi_of: dict[int, int] = {}  # by eventfd; kept when it is detached, for it will be attached again
        self.messages: dict[int, MsiIrqConfig] = {}  # by GSI
        self.attached: set[int] = set()
        self.owned: list[Any] = []
        # vCPUs configure their devices' messages at the same time, and the table is replaced as a whole
        self.lock = RLock()

    def edge(self, gsi: int) -> EventFdInterrupt:
        """Return a line that is triggered."""
        interrupt = EventFdInterrupt()
        self.owned.append(interrupt)
        self.vm.register_irqfd(interrupt.fileno(), gsi)
        return interrupt

    def level(self, gsi: int) -> EventFdLevelInterrupt:
        """Return a line that is asserted and cleared; several devices on it need a `SharedLine`, which PCI has."""
        interrupt = EventFdLevelInterrupt()
        self.owned.append(interrupt)
        self.vm.register_irqfd_with_resample(interrupt.fileno(), interrupt.resample_fd(), gsi)
        self.loop.add_reader(interrupt.resample_fd(), interrupt.on_resample)
        return interrupt

    def group(self, count: int) -> EventFdGroup:
        """Return so many interrupts for `PciFunction.add_msi` or `add_msix`."""
        group = EventFdGroup(count, self)
        self.owned.append(group)
        return group

    def send(self, config: MsiIrqConfig) -> None:
        """Send one message now, as a `MessageGroup` or a software IOAPIC does."""
        self.vm.signal_msi(config.address, config.data)

    def route(self, gsi: int, config: MsiIrqConfig | None) -> None:
        """Let a number stand for a message, or for nothing.

        For the lines of an IOAPIC that is not KVM's this is how KVM learns which of them are level-triggered and shall
        have their ends of interrupt reported.
        """
        with self.lock:
            if self.messages.get(gsi) == config:
                return
            if config is None:
                del self.messages[gsi]
            else:
                self.messages[gsi] = config
            messages = [IrqRoute.msi(gsi, one.address, one.data) for gsi, one in self.messages.items()]
            self.vm.set_gsi_routing(IrqRouting([*self.lines, *messages]))

    # what `EventFdGroup` asks of a router

    def attach(self, fd: int, config: MsiIrqConfig) -> None:
        """Send this message whenever the eventfd is written to."""
        with self.lock:
            gsi = self.gsi_of.get(fd)
            if gsi is None:
                gsi = self.gsi_of[fd] = self.pool.allocate(holder=f"eventfd {fd}")
            self.route(gsi, config)
            if fd not in self.attached:
                self.vm.register_irqfd(fd, gsi)
                self.attached.add(fd)

    def detach(self, fd: int) -> None:
        """Leave what is written to the eventfd in the eventfd."""
        with self.lock:
            self.vm.unregister_irqfd(fd, self.gsi_of[fd])
            self.attached.discard(fd)

    def close(self) -> None:
        """Close what was handed out; do it before the VM is closed."""
        while self.owned:
            one = self.owned.pop()
            if isinstance(one, EventFdLevelInterrupt):
                self.loop.remove_reader(one.resample_fd())
            one.close()

    def __repr__(self) -> str:
        return f"<KvmInterrupts, {len(self.owned)} handed out, {len(self.attached)} messages>"
