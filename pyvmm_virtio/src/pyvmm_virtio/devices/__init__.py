"""The virtio devices, one module each; the back ends they stand on are in `pyvmm_virtio.backends`.

>>> from pyvmm_virtio.backends.memory import MemoryDisk
>>> from pyvmm_virtio.devices import Block
>>> Block(MemoryDisk(1 << 20))
<Block inactive, 1 queues>

The names below load their modules when they are first used.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_virtio.devices.block import Block as Block
    from pyvmm_virtio.devices.console import Console as Console
    from pyvmm_virtio.devices.console import Port as Port
    from pyvmm_virtio.devices.net import Net as Net
    from pyvmm_virtio.devices.rng import Rng as Rng

_MODULES = {"Block": "block", "Console": "console", "Port": "console", "Net": "net", "Rng": "rng"}
__all__ = ["Block", "Console", "Net", "Port", "Rng"]


def __getattr__(name: str) -> object:
    module = _MODULES.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
