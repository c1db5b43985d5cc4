"""How KVM delivers the interrupts that pyvmm_device speaks of: irqfd, resamplefd and GSI routing behind its protocols.

Neither package knows of the other; this is where a VMM lets them meet. Lines of the interrupt controllers come as
objects to give to a device, and MSI or MSI-X as an `EventFdGroup` whose router is pyvmm_kvm's `GsiRouter`: the guest's
driver writes a message into the device's table, and from then on an eventfd turns into that message without a detour
through here.
"""

from __future__ import annotations

from pyvmm_device import EventFdGroup, EventFdInterrupt, EventFdLevelInterrupt
from pyvmm_kvm import GsiRouter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from pyvmm_device import EventLoop, MsiIrqConfig, Registration
    from pyvmm_kvm import IrqRouting, VmFd


class KvmInterrupts:
    """The interrupts of one virtual machine.

    Args:
        vm: with its interrupt controllers, in KVM or split.
        loop: in which ends of level interrupts are taken.
        lines: the routes of the controllers' lines, as `GsiRouter` takes them.
        router: what takes the messages, where it is not made of the lines alone.
    """

    def __init__(
        self, vm: VmFd, loop: EventLoop, lines: IrqRouting | None = None, router: GsiRouter | None = None
    ) -> None:
        self.vm = vm
        self.loop = loop
        self.router = router or GsiRouter(vm, lines)
        self.owned: list[Any] = []
        self.ends: list[Registration] = []

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
        self.ends.append(self.loop.add_reader(interrupt.resample_fd(), interrupt.on_resample))
        return interrupt

    def group(self, count: int) -> EventFdGroup:
        """Return so many interrupts for `PciFunction.add_msi` or `add_msix`."""
        group = EventFdGroup(count, self.router)
        self.owned.append(group)
        return group

    def send(self, config: MsiIrqConfig) -> None:
        """Send one message now, as a `MessageGroup` or a software IOAPIC does."""
        self.router.send(config)

    def route(self, gsi: int, config: MsiIrqConfig | None) -> None:
        """Let a line of an IOAPIC that is not KVM's stand for a message, or for nothing."""
        self.router.route(gsi, config)

    def close(self) -> None:
        """Close what was handed out; do it before the VM is closed."""
        while self.ends:
            self.ends.pop().cancel()
        while self.owned:
            self.owned.pop().close()

    def __repr__(self) -> str:
        return f"<KvmInterrupts, {len(self.owned)} handed out, {len(self.router.attached)} messages>"
