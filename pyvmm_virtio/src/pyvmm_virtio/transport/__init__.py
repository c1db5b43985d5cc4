"""How a driver reaches a device: registers in memory (`VirtioMmio`), or a PCI function (`VirtioPci`).

Both are the same state machine, `status`, with other registers around it.

>>> from pyvmm_memory import GuestMemoryMmap
>>> from pyvmm_virtio.device import VirtioDevice
>>> from pyvmm_virtio.transport import VirtioMmio
>>> transport = VirtioMmio(VirtioDevice(), GuestMemoryMmap.from_ranges([(0, 0x1000)]))
>>> magic = memoryview(bytearray(4))
>>> transport.read(0, magic)
>>> bytes(magic)
b'virt'
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_virtio.transport.base import NotifyAddress as NotifyAddress
    from pyvmm_virtio.transport.mmio import VirtioMmio as VirtioMmio
    from pyvmm_virtio.transport.pci import VirtioPci as VirtioPci
    from pyvmm_virtio.transport.queue_events import QueueEvents as QueueEvents

_HOMES = {
    "base": "NotifyAddress",
    "mmio": "VirtioMmio",
    "pci": "VirtioPci",
    "queue_events": "QueueEvents",
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
