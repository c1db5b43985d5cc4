"""Where checks are listed."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from pyvmm_virtio.conformance.bench import Bench

    Function = Callable[[Bench], None]

CHECKS: dict[str, Check] = {}


class Check:
    """A check: a function that raises `CheckFailed`, and where it is made."""

    __slots__ = ("function", "rings", "transports")

    def __init__(self, function: Function, transports: Sequence[str], rings: Sequence[str]) -> None:
        self.function = function
        self.transports = transports
        self.rings = rings


def check(
    transports: Sequence[str] = ("mmio", "pci"), rings: Sequence[str] = ("split", "packed")
) -> Callable[[Function], Function]:
    """List a check under the name of its function."""

    def add(function: Function) -> Function:
        CHECKS[function.__name__] = Check(function, transports, rings)
        return function

    return add
