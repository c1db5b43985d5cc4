"""Interrupts that a driver configures by the dozen: MSI and MSI-X messages, behind one protocol.

A device triggers a vector of its group and need not know how it is delivered. Three implementations: `MessageGroup`
sends each message through a function (a hypervisor's "signal MSI" call, a software IOAPIC's bus, a list in a test),
`EventFdGroup` gives each vector an eventfd and tells a router which message it stands for, so that a data plane, or
another process, interrupts the guest without us, and `LegacyGroup` lays all vectors on one level line. One of your own
is a subclass of `InterruptGroup` that says how to deliver.

A group is triggered by any thread while vCPUs configure it. Its lock protects what is configured, masked and pending,
and no more: messages are sent, lines moved and eventfds attached when it has been released, in order and by one thread
at a time. So a vector that a guest masks may deliver what was triggered just before.
"""

from __future__ import annotations

from abc import ABC, abstractmethod

from pyvmm_device.errors import InterruptError
from pyvmm_device.interrupt import EventFdInterrupt
from pyvmm_device.irq_config import MsiIrqConfig
from pyvmm_device.locks import DeferringLock
from pyvmm_device.state import Stateful, array, choice

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType
    from typing import Any, Self

    from pyvmm_device.protocols import InterruptSourceGroup as InterruptSourceGroup
    from pyvmm_device.protocols import LevelInterrupt
    from pyvmm_device.protocols import MsiRouter as MsiRouter


class GroupInterrupt:
    """One interrupt of a group, for a device that should not know of the others: an edge that can be masked."""

    __slots__ = ("_group", "index")

    def __init__(self, group: InterruptSourceGroup, index: int) -> None:
        self._group = group
        self.index = index

    def trigger(self) -> None:
        """Interrupt the guest, or note it while masked."""
        self._group.trigger(self.index)

    def update(self, config: MsiIrqConfig) -> None:
        """Say what message it stands for."""
        self._group.update(self.index, config)

    def get_config(self) -> MsiIrqConfig | None:
        """Return the message it stands for, or None."""
        return self._group.get_config(self.index)

    def mask(self) -> None:
        """Hold it back."""
        self._group.mask(self.index)

    def unmask(self) -> None:
        """Deliver it again, at once if it was triggered meanwhile."""
        self._group.unmask(self.index)

    def is_pending(self) -> bool:
        """Say whether it was triggered while it could not be delivered."""
        return self._group.is_pending(self.index)

    def fileno(self) -> int:
        """Return the eventfd that triggers it; raises `InterruptError` in a group without eventfds."""
        fd = self._group.notifier(self.index)
        if fd is None:
            raise InterruptError(f"{self._group!r} has no eventfds: trigger it, or use an EventFdGroup")
        return fd

    def __repr__(self) -> str:
        return f"<GroupInterrupt {self.index} of {self._group!r}>"


class InterruptGroup(Stateful, ABC):
    """What all groups share: configuration, masks and pending bits; a subclass says how to deliver."""

    STATE = {"masked": array(choice(True, False), 2048), "pending": array(choice(True, False), 2048)}

    def __init__(self, count: int) -> None:
        if not 1 <= count <= 2048:
            raise InterruptError(f"a group has 1 to 2048 interrupts, not {count}")
        self.lock: DeferringLock = DeferringLock()
        self._enabled = False
        self._configs: list[MsiIrqConfig | None] = [None] * count
        self._masked = [False] * count
        self._pending = [False] * count

    def __len__(self) -> int:
        return len(self._configs)

    def get(self, index: int) -> GroupInterrupt:
        """Return one interrupt as an object of its own; raises `InterruptError` beyond the last."""
        self._check(index)
        return GroupInterrupt(self, index)

    def _check(self, index: int) -> None:
        if not 0 <= index < len(self._configs):
            raise InterruptError(f"interrupt {index} of a group of {len(self._configs)}")

    def enable(self) -> None:
        """Let triggers through from now on, and first those that came before."""
        with self.lock:
            self._enabled = True
            for index in range(len(self)):
                self._refresh(index)

    def disable(self) -> None:
        """Keep triggers back from now on."""
        with self.lock:
            self._enabled = False
            for index in range(len(self)):
                self._refresh(index)

    def update(self, index: int, config: MsiIrqConfig) -> None:
        """Say what message an interrupt stands for."""
        self._check(index)
        with self.lock:
            self._configs[index] = config
            self._refresh(index)

    def get_config(self, index: int) -> MsiIrqConfig | None:
        """Return the message an interrupt stands for, or None."""
        self._check(index)
        return self._configs[index]

    def mask(self, index: int) -> None:
        """Hold an interrupt back."""
        self._check(index)
        with self.lock:
            self._masked[index] = True
            self._refresh(index)

    def unmask(self, index: int) -> None:
        """Deliver an interrupt again, at once if it was triggered meanwhile."""
        self._check(index)
        with self.lock:
            self._masked[index] = False
            self._refresh(index)

    def is_pending(self, index: int) -> bool:
        """Say whether an interrupt was triggered while it could not be delivered."""
        self._check(index)
        with self.lock:
            return self._pending[index]

    def trigger(self, index: int) -> None:
        """Interrupt the guest, or note it where that interrupt cannot be delivered now."""
        self._check(index)
        with self.lock:
            if self._ready(index):
                self.lock.after(self._deliver, index)
            else:
                self._pending[index] = True

    def notifier(self, index: int) -> int | None:
        """Return an eventfd that triggers this interrupt, or None if there is no such way."""
        self._check(index)
        return None

    def reset(self) -> None:
        """Forget configuration, masks and what is pending."""
        with self.lock:
            count = len(self)
            self._enabled = False
            self._configs = [None] * count
            self._masked = [False] * count
            self._pending = [False] * count
            for index in range(count):
                self._refresh(index)

    def _check_fields(self, fields: dict[str, Any]) -> None:
        from pyvmm_device.errors import DeviceStateError

        if not len(fields["masked"]) == len(fields["pending"]) == len(self):
            raise DeviceStateError(
                type(self).__name__, f"it is of {len(fields['masked'])} interrupts, here are {len(self)}"
            )

    def _ready(self, index: int) -> bool:
        return self._enabled and not self._masked[index] and self._configs[index] is not None

    def _refresh(self, index: int) -> None:
        """Bring an interrupt to what is configured now; called with the lock held."""
        if self._pending[index] and self._ready(index):
            self._pending[index] = False
            self.lock.after(self._deliver, index)

    @abstractmethod
    def _deliver(self, index: int) -> None:
        """Interrupt the guest, for an interrupt that is configured and not masked; called when the lock is released.

        What it raises is counted in ``lock.failed``: whoever triggers has no part in it.
        """

    def close(self) -> None:
        """Give back what the interrupts hold; idempotent."""
        self.disable()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "on" if self._enabled else "off"
        return f"<{type(self).__name__} of {len(self)}, {state}, {sum(self._masked)} masked, {sum(self._pending)} wait>"


class MessageGroup(InterruptGroup):
    """Sends each message through a function, in the thread that triggers.

    Args:
        count: how many interrupts there are.
        send: called with the message.
    """

    def __init__(self, count: int, send: Callable[[MsiIrqConfig], object]) -> None:
        super().__init__(count)
        self._send = send

    def trigger(self, index: int) -> None:
        """Interrupt the guest, or note it where that interrupt cannot be delivered now."""
        self._check(index)
        with self.lock:
            config = self._configs[index] if self._ready(index) else None
            if config is None:
                self._pending[index] = True
                return
        # in this thread, with no order among messages to keep: a data plane does this for each of its requests
        try:
            self._send(config)
        except Exception as error:  # noqa: BLE001 - whoever triggers has no part in it
            self.lock.failed.count("send", "%r: a message could not be sent (others are only counted): %r", self, error)

    def _deliver(self, index: int) -> None:
        config = self._configs[index]
        if config is not None:
            self._send(config)


class EventFdGroup(InterruptGroup):
    """An eventfd for each interrupt, attached to its message by a router while it can be delivered.

    While an interrupt is masked its eventfd is attached to nothing and collects, so triggers from a data plane are
    kept too; `is_pending` looks into the eventfd.

    Args:
        count: how many interrupts there are.
        router: attaches eventfds to messages.
    """

    def __init__(self, count: int, router: MsiRouter) -> None:
        super().__init__(count)
        self._router = router
        self._events = [EventFdInterrupt() for _ in range(count)]
        self._attached: list[MsiIrqConfig | None] = [None] * count

    def trigger(self, index: int) -> None:
        """Interrupt the guest: one write to the eventfd, whether it can be delivered or not."""
        self._check(index)
        self._deliver(index)

    def notifier(self, index: int) -> int | None:
        """Return the eventfd that triggers this interrupt."""
        self._check(index)
        return self._events[index].fileno()

    def is_pending(self, index: int) -> bool:
        """Say whether it was triggered while it could not be delivered."""
        self._check(index)
        pending = self._take(index)
        if pending:
            self._deliver(index)  # back, or to the guest, where it was attached meanwhile
        return pending

    def _take(self, index: int) -> bool:
        import os

        if self._attached[index] is not None:
            return False  # what is in the eventfd is on its way to the guest
        try:
            return os.eventfd_read(self._events[index].fileno()) > 0
        except BlockingIOError:
            return False

    def _deliver(self, index: int) -> None:
        self._events[index].trigger()

    def _refresh(self, index: int) -> None:
        if self._wanted(index) != self._attached[index]:
            self.lock.after(self._settle, index)

    def _wanted(self, index: int) -> MsiIrqConfig | None:
        return self._configs[index] if self._ready(index) else None

    def _settle(self, index: int) -> None:
        """Attach the eventfd to what is wanted now: from the lock's outbox only, so in one thread at a time."""
        with self.lock:
            wanted, attached = self._wanted(index), self._attached[index]
        if wanted == attached:
            return
        fd = self._events[index].fileno()
        if wanted is None:
            self._router.detach(fd)
            self._attached[index] = None
            return
        pending = attached is None and self._take(index)
        try:
            self._router.attach(fd, wanted)
            self._attached[index] = wanted
        finally:
            if pending:
                self._deliver(index)

    def reset(self) -> None:
        """Forget configuration, masks and what is pending."""
        with self.lock:
            super().reset()
            for index in range(len(self)):
                self.lock.after(self._take, index)

    def _before_save(self) -> None:
        self._pending = [self.is_pending(index) for index in range(len(self))]

    def _after_restore(self) -> None:
        for index, pending in enumerate(self._pending):
            self._take(index)
            if pending:
                self._deliver(index)
            self._pending[index] = False
            self._refresh(index)

    def close(self) -> None:
        """Detach and close the eventfds; idempotent."""
        with self.lock:
            self.disable()
            self.lock.after(self._close)

    def _close(self) -> None:
        for event in self._events:
            event.close()


class LegacyGroup(InterruptGroup):
    """Lays every interrupt on one level line; the device clears it once its status was read.

    Args:
        count: how many interrupts there are.
        line: the line.
    """

    def __init__(self, count: int, line: LevelInterrupt) -> None:
        super().__init__(count)
        self._line = line
        self._configs = [MsiIrqConfig(0, 0, 0)] * count

    def _deliver(self, index: int) -> None:  # noqa: ARG002 - they are all the same line
        self._line.assert_()

    def clear(self) -> None:
        """Lower the line."""
        with self.lock:
            self.lock.after(self._line.clear)
