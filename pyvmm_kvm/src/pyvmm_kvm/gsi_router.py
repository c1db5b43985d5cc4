"""The interrupt numbers of a VM (GSIs): what each stands for, and which eventfd raises it.

A GSI stands for a pin of an interrupt controller, or for a message; an irqfd ties an eventfd to a GSI. KVM keeps one
table of what the GSIs stand for and KVM_SET_GSI_ROUTING replaces it as a whole, so one object has to own it. Here:

- The routes of the controllers' pins are given at the start and are in every table.
- An eventfd gets a GSI when it is attached for the first time and keeps it: it is detached while its device masks the
  interrupt, and attached again.
- A GSI's message is in the table before its eventfd is registered, so no signal meets a GSI without a route.
- What is noted is what KVM has: a table that KVM refuses changes nothing here.
- Threads change the table in turns (`Turns`), and no lock is held while KVM is called. What is noted is replaced as a
  whole, so who only reads it waits for nobody.
"""

from __future__ import annotations

import errno

from pyvmm_kvm.errors import KvmError
from pyvmm_kvm.routing import IrqRoute, IrqRouting
from pyvmm_kvm.turns import Turns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Protocol

    from pyvmm_kvm.vm import VmFd

    class Message(Protocol):
        """A message-signalled interrupt, as the guest's driver writes it into a device's table."""

        @property
        def address(self) -> int:
            """Where the message is written."""

        @property
        def data(self) -> int:
            """What is written there."""

        @property
        def devid(self) -> int:
            """Which device writes it."""


class GsiRouter:
    """Lets eventfds of devices become messages to the guest without a detour through this process.

    Any thread may call it: vCPUs configure their devices' messages at the same time.

    Args:
        vm: with its interrupt controllers, in KVM or split.
        lines: the routes of the controllers' pins; by default those that KVM begins with on x86. Give an empty table
            where the IOAPIC is not KVM's.
        gsis: the numbers that eventfds may have, above those of the pins; the first are taken first.
        devids: whether each message goes with the number of the device that sends it, which Arm's ITS needs
            (KVM_CAP_MSI_DEVID).
    """

    __slots__ = ("_attached", "_free", "_gsi_of", "_messages", "_turns", "devids", "lines", "vm")

    def __init__(
        self,
        vm: VmFd,
        lines: IrqRouting | None = None,
        gsis: Iterable[int] = range(24, 1024),
        *,
        devids: bool = False,
    ) -> None:
        self.vm = vm
        self.lines = IrqRouting.legacy() if lines is None else lines
        self.devids = devids
        self._free = iter(gsis)
        self._gsi_of: dict[int, int] = {}  # by eventfd
        self._messages: dict[int, IrqRoute] = {}  # by GSI
        self._attached: frozenset[int] = frozenset()
        self._turns = Turns()

    def attach(self, fd: int, config: Message) -> None:
        """Send this message whenever the eventfd is written to, in place of an earlier one for this eventfd.

        `KvmError` with ENOSPC where all GSIs are taken, and where KVM refuses the message. Detach the eventfd before it
        is closed: its number will be another's.
        """
        with self._turns:
            gsi = self._gsi_of.get(fd)
            if gsi is None:
                gsi = next(self._free, None)
                if gsi is None:
                    raise KvmError(errno.ENOSPC, "KVM_IRQFD", f"all {len(self._gsi_of)} GSIs for eventfds are taken")
                self._gsi_of[fd] = gsi
            self._replace(gsi, config)
            if fd not in self._attached:
                self.vm.register_irqfd(fd, gsi)
                self._attached |= {fd}

    def detach(self, fd: int) -> None:
        """Leave what is written to the eventfd in the eventfd; idempotent."""
        with self._turns:
            if fd in self._attached:
                self.vm.unregister_irqfd(fd, self._gsi_of[fd])
                self._attached -= {fd}

    def route(self, gsi: int, config: Message | None) -> None:
        """Let a number stand for a message, or for nothing.

        For the pins of an IOAPIC that is not KVM's this is how KVM learns which of them are level-triggered and shall
        have their ends of interrupt reported.
        """
        with self._turns:
            self._replace(gsi, config)

    def send(self, config: Message) -> int:
        """Send one message now; return what `VmFd.signal_msi` does."""
        return self.vm.signal_msi(config.address, config.data, self._devid(config))

    def table(self) -> IrqRouting:
        """Return the table that KVM has: the pins, and the messages in the order of their first routes."""
        return IrqRouting([*self.lines, *self._messages.values()])

    @property
    def attached(self) -> frozenset[int]:
        """The eventfds that become messages now."""
        return self._attached

    def _devid(self, config: Message) -> int | None:
        return config.devid if self.devids else None

    def _replace(self, gsi: int, config: Message | None) -> None:
        route = None
        if config is not None:
            route = IrqRoute.msi(gsi, config.address, config.data, self._devid(config))
        if self._messages.get(gsi) == route:
            return
        messages = dict(self._messages)
        if route is None:
            del messages[gsi]
        else:
            messages[gsi] = route
        self.vm.set_gsi_routing(IrqRouting([*self.lines, *messages.values()]))
        self._messages = messages

    def __repr__(self) -> str:
        return f"<GsiRouter, {len(self.lines)} routes of lines, {len(self._attached)} eventfds attached>"
