"""How a device reaches its driver: one notification for each queue, and one for its configuration.

Transports implement this on the interrupts of `pyvmm_device`; a device only calls it.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class VirtioInterrupt(Protocol):
        """Notifications from a device to its driver. May be called from any thread."""

        def signal_queue(self, index: int) -> None:
            """Tell the driver that chains of a queue were given back ("used buffer notification")."""
            ...

        def signal_config(self) -> None:
            """Tell the driver that the configuration or the status changed ("configuration change notification")."""
            ...


class NoInterrupt:
    """Of a device that no driver drives: nobody is told."""

    def signal_queue(self, index: int) -> None:
        """Do nothing."""

    def signal_config(self) -> None:
        """Do nothing."""
