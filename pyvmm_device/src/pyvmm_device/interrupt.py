"""How a device asks for attention. Protocols first; whoever wires a machine decides what is behind them."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Protocol, Self

    class EdgeInterrupt(Protocol):
        """An interrupt that is an event: each trigger is one edge."""

        def trigger(self) -> None:
            """Send one edge."""
            ...


class EventFdInterrupt:
    """An edge interrupt as an eventfd, which a hypervisor turns into an interrupt (KVM: ``VmFd.register_irqfd``)."""

    __slots__ = ("_fd",)

    def __init__(self) -> None:
        self._fd = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def fileno(self) -> int:
        """Return the eventfd, which stays ours."""
        return self._fd

    def trigger(self) -> None:
        """Send one edge."""
        os.eventfd_write(self._fd, 1)

    def close(self) -> None:
        """Close the eventfd; once is enough."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<EventFdInterrupt {'closed' if self._fd < 0 else f'fd={self._fd}'}>"
