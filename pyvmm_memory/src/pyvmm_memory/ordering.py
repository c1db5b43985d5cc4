"""Memory ordering: the compiled fence, imported only by those who use it."""

from __future__ import annotations

from ._memory import lib


def fence() -> None:
    """Order every access before this against every access after it (sequentially consistent).

    x86 lets a load pass an earlier store: a ring's index store and the load of the peer's event index need this.
    """
    lib.pyvmm_fence()
