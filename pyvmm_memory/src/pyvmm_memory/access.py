"""Which single accesses are used: the compiled ones, or those in Python where nothing was compiled.

`PYVMM_MEMORY_PURE=1` in the environment asks for those in Python: the same behaviour to read and to step through.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING or os.environ.get("PYVMM_MEMORY_PURE"):
    from pyvmm_memory.window import FastAccess, Window
else:
    try:
        from pyvmm_memory._window import FastAccess, Window
    except ImportError:
        from pyvmm_memory.window import FastAccess, Window

COMPILED = Window.__module__.endswith("._window")

__all__ = ["COMPILED", "FastAccess", "Window"]
