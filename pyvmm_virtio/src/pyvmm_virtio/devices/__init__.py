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
    from pyvmm_virtio.devices.block.device import Block as Block
    from pyvmm_virtio.devices.console.device import Console as Console
    from pyvmm_virtio.devices.console.port import Port as Port
    from pyvmm_virtio.devices.net.device import Net as Net
    from pyvmm_virtio.devices.rng import Rng as Rng

_HOMES = {
    "block.device": "Block",
    "console.device": "Console",
    "console.port": "Port",
    "net.device": "Net",
    "rng": "Rng",
}
_HOME = {name: home for home, names in _HOMES.items() for name in names.split()}

__all__ = list(_HOME)


def __getattr__(name: str) -> object:
    home = _HOME.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    value: object = getattr(import_module(f"{__name__}.{home}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
