"""The order of memory accesses in rings, each named by what the specification calls for.

Stores by one processor are seen in their order on x86, and so are loads; only a load may pass an earlier store to
another place. Elsewhere nothing is promised. Item access on a view is one plain load or store in C, which no compiler
moves across another call into CPython.
"""

from __future__ import annotations

import os

from pyvmm_memory import fence as full

IS_WEAK = os.uname().machine not in ("x86_64", "i686")
"""Whether stores may be seen in another order, and loads done in one."""


def _nothing() -> None:
    pass


release = acquire = full if IS_WEAK else _nothing

__all__ = ["IS_WEAK", "acquire", "full", "release"]
