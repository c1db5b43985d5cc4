"""What a device offers and what it asks for, as protocols: nothing here has to be inherited from.

The interrupt protocols are the trait set that vm-device merged and took out again, under its names. They can be
imported and used with `isinstance` at run time; the package itself names them in annotations only, so that nobody who
does not ask pays for `typing`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm_device.irq_config import LegacyIrqConfig, MsiIrqConfig


@runtime_checkable
class Device(Protocol):
    """Anything that answers on a bus. Offsets count from the base of the range it is registered at."""

    def read(self, offset: int, buffer: memoryview) -> None:
        """Fill the buffer with what the device answers to a read of its length."""
        ...

    def write(self, offset: int, data: memoryview) -> None:
        """Take what the guest wrote; the data is valid during the call."""
        ...


@runtime_checkable
class EdgeInterrupt(Protocol):
    """An interrupt that is an event: each trigger is one edge."""

    def trigger(self) -> None:
        """Send one edge."""
        ...


@runtime_checkable
class LevelInterrupt(Protocol):
    """An interrupt that is a state: it is delivered again and again while it is asserted."""

    def assert_(self) -> None:
        """Raise the line; raising it twice changes nothing."""
        ...

    def clear(self) -> None:
        """Lower the line; lowering it twice changes nothing."""
        ...


@runtime_checkable
class SwitchableInterrupt(Protocol):
    """An interrupt whose delivery has to be switched on; vm-device called this one ``Interrupt``."""

    def enable(self) -> None:
        """Let triggers through from now on, and first those that came before."""
        ...

    def disable(self) -> None:
        """Keep triggers back from now on."""
        ...


@runtime_checkable
class ConfigurableInterrupt(Protocol):
    """An interrupt whose driver says where it goes."""

    def update(self, config: MsiIrqConfig) -> None:
        """Say what message it stands for from now on."""
        ...

    def get_config(self) -> MsiIrqConfig | LegacyIrqConfig | None:
        """Return what was said last, or None."""
        ...


@runtime_checkable
class MaskableInterrupt(Protocol):
    """An interrupt that can be held back; what comes while it is masked is delivered when it is unmasked."""

    def mask(self) -> None:
        """Hold back."""
        ...

    def unmask(self) -> None:
        """Deliver again, first what was held back."""
        ...


@runtime_checkable
class InterruptStatusChecker(Protocol):
    """Says whether a device still wants attention."""

    def is_active(self) -> bool:
        """Say whether the interrupt should be asserted now."""
        ...


@runtime_checkable
class AutoRetriggerInterrupt(Protocol):
    """A level interrupt that asks at each end of interrupt whether its device still wants attention."""

    def set_status_checker(self, checker: InterruptStatusChecker | Callable[[], bool]) -> None:
        """Ask this object, or call this function."""
        ...


@runtime_checkable
class TriggerNotifier(Protocol):
    """An interrupt with an eventfd that triggers it; vm-device's ``AsRefTriggerNotifier``."""

    def fileno(self) -> int:
        """Return the eventfd."""
        ...


@runtime_checkable
class ResampleNotifier(Protocol):
    """A level interrupt with an eventfd that says when the guest ended it; vm-device's ``AsRefResampleNotifier``."""

    def resample_fd(self) -> int:
        """Return the eventfd."""
        ...


@runtime_checkable
class InterruptSourceGroup(Protocol):
    """Interrupts of one device that are configured and masked one by one.

    A group has its interrupts from the moment it is made until it is closed, where vm-device's are allocated and freed.
    """

    def __len__(self) -> int: ...

    def enable(self) -> None:
        """Let triggers through from now on, and first those that came before."""
        ...

    def disable(self) -> None:
        """Keep triggers back from now on."""
        ...

    def trigger(self, index: int) -> None:
        """Interrupt the guest, or note it where that vector is masked."""
        ...

    def update(self, index: int, config: MsiIrqConfig) -> None:
        """Say what message a vector stands for."""
        ...

    def get_config(self, index: int) -> MsiIrqConfig | None:
        """Return the message a vector stands for."""
        ...

    def mask(self, index: int) -> None:
        """Hold a vector back."""
        ...

    def unmask(self, index: int) -> None:
        """Deliver a vector again, at once if it was triggered meanwhile."""
        ...

    def is_pending(self, index: int) -> bool:
        """Say whether a vector was triggered while it could not be delivered."""
        ...

    def notifier(self, index: int) -> int | None:
        """Return an eventfd that triggers this vector, or None if there is no such way."""
        ...

    def close(self) -> None:
        """Give back what the interrupts hold; idempotent."""
        ...


@runtime_checkable
class MsiRouter(Protocol):
    """What turns an eventfd into a message: a hypervisor's interrupt routing."""

    def attach(self, fd: int, config: MsiIrqConfig) -> None:
        """Send this message whenever the eventfd is written to; replaces an earlier one for this eventfd."""
        ...

    def detach(self, fd: int) -> None:
        """Leave what is written to the eventfd in the eventfd."""
        ...
