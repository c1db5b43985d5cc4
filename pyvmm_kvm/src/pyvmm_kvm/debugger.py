"""What debugging a vCPU has in common on all architectures: stepping, resuming, and switching off at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod

from pyvmm_kvm.exits.hot import Again

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import ClassVar, Protocol, Self

    from pyvmm_kvm.exits.hot import VcpuExit

    class Runnable(Protocol):
        """As much of a vCPU as stepping needs."""

        @property
        def closed(self) -> bool:
            """Whether its descriptor was given back."""

        def run(self) -> VcpuExit:
            """Enter the guest."""

        def set_guest_debug(self, control: int) -> None:
            """Call KVM_SET_GUEST_DEBUG; 0 switches it off."""


ENABLE = 1 << 0
SINGLESTEP = 1 << 1


class Debugger(ABC):
    """The part that a subclass completes with its architecture's breakpoints.

    It gives `arm`, `position` and `stop_kind`, the type of exit that ends a step.
    """

    __slots__ = ("vcpu",)
    stop_kind: ClassVar[type[VcpuExit]]

    def __init__(self, vcpu: Runnable) -> None:
        self.vcpu = vcpu

    @abstractmethod
    def arm(self, extra: int = 0) -> None:
        """Give the control bits and breakpoints to KVM."""

    @abstractmethod
    def position(self, exit_: VcpuExit, /) -> int:
        """Return where the guest goes on after a stop."""

    def step(self) -> VcpuExit:
        """Execute one instruction; return a debug exit, or the exit that the instruction caused instead."""
        self.arm(SINGLESTEP)
        return self._run()

    def steps(self, limit: int) -> Iterator[int]:
        """Make up to `limit` single steps; yield the address of each next instruction, and end at another exit."""
        for _ in range(limit):
            exit_ = self.step()
            if not isinstance(exit_, self.stop_kind):
                return
            yield self.position(exit_)

    def resume(self) -> VcpuExit:
        """Run to the next breakpoint or other exit."""
        self.arm()
        return self._run()

    def _run(self) -> VcpuExit:
        while True:
            exit_: VcpuExit = self.vcpu.run()
            if not isinstance(exit_, Again):
                return exit_

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        if not self.vcpu.closed:
            self.vcpu.set_guest_debug(0)
