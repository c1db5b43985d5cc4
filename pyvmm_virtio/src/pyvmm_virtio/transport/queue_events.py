"""Queues tied to eventfds: a driver's notification becomes a write to one, without leaving the guest.

A hypervisor can watch an address for a guest's write and signal an eventfd instead of stopping the processor; KVM
calls it ioeventfd. `NotifyAddress` says where a transport has its notifications. `QueueEvents` holds the eventfds, has
each kick its queue in an event loop's thread, and has the hypervisor watch where the registers are now: always the same
place for MMIO, wherever the guest moves the BAR for PCI. Queues that a driver did not enable, or reset, are watched
too: to kick one does nothing.

>>> from pyvmm_device import EventLoop
>>> from pyvmm_memory import GuestMemoryMmap
>>> from pyvmm_virtio.devices import Rng
>>> from pyvmm_virtio.transport import QueueEvents, VirtioMmio
>>> transport = VirtioMmio(Rng(), GuestMemoryMmap.from_ranges([(0, 0x1000)]))
>>> def assign(address, length, fd, datamatch):
...     print(f"{length} bytes at {address:#x}, if they are {datamatch}")
>>> with EventLoop() as loop:
...     events = QueueEvents(transport, loop, assign, lambda *same: None)
...     events.move(0xD0000000)
...     events.close()
4 bytes at 0xd0000050, if they are 0
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Protocol

    from pyvmm_device.event_loop import EventLoop, Registration
    from pyvmm_virtio.device import VirtioDevice
    from pyvmm_virtio.transport.base import NotifyAddress

    Watch = Callable[[int, int, int, int | None], object]

    class Notified(Protocol):
        """A transport, as far as this is concerned: `VirtioMmio` or `VirtioPci`."""

        device: VirtioDevice

        def notify_addresses(self) -> list[NotifyAddress]:
            """Say where a driver notifies each queue."""
            ...


class QueueEvents:
    """The eventfds of one transport's queues. Nothing is watched until `move`.

    Args:
        transport: of which these are the queues.
        loop: in whose thread they are kicked.
        assign: called as ``assign(address, length, fd, datamatch)`` to have a write of `length` bytes (0 is any) at a
            guest address, of the value `datamatch` (None is any), signal an eventfd from now on.
        deassign: called with the same to undo it.

    Attributes:
        base: from where on the notifications are watched, or None.
    """

    def __init__(self, transport: Notified, loop: EventLoop, assign: Watch, deassign: Watch) -> None:
        self.base: int | None = None
        self._assign, self._deassign = assign, deassign
        self._events: list[tuple[int, NotifyAddress]] = []
        self._registrations: list[Registration] = []
        self._watched: list[tuple[int, int, int, int | None]] = []
        try:
            for notify in transport.notify_addresses():
                fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                self._events.append((fd, notify))
                self._registrations.append(loop.add_eventfd(fd, _kicker(transport.device, notify.queue)))
        except BaseException:
            self.close()
            raise

    def move(self, base: int | None) -> None:
        """Have notifications watched from there on, or nowhere: the MMIO range's base, `VirtioPci.notify_base`.

        ``transport.on_notify_moved = events.move`` follows a PCI function.
        """
        while self._watched:
            self._deassign(*self._watched.pop())
        self.base = base
        if base is not None:
            for fd, notify in self._events:
                where = base + notify.offset, notify.length, fd, notify.datamatch
                self._assign(*where)
                self._watched.append(where)

    def close(self) -> None:
        """Have nothing watched any more, and close the eventfds; idempotent. The hypervisor's VM must still be open."""
        self.move(None)
        # before the descriptors are closed, whose numbers are somebody else's from then on
        while self._registrations:
            self._registrations.pop().cancel()
        while self._events:
            os.close(self._events.pop()[0])

    def __repr__(self) -> str:
        where = "nowhere" if self.base is None else f"at {self.base:#x}"
        return f"<QueueEvents of {len(self._events)} queues, {where}>"


def _kicker(device: VirtioDevice, queue: int) -> Callable[[int], object]:
    return lambda _: device.kick(queue)
