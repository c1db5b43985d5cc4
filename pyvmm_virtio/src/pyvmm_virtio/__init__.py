"""Virtio: what a guest's drivers and a machine's devices agree on, and both sides of it.

A device of one's own says what it does with requests; everything else is here. This one answers back to front:

>>> from pyvmm_virtio import VirtioDevice, drive
>>> class Reverse(VirtioDevice):
...     device_type = 42
...     queue_max_sizes = (64,)
...     def process_queue(self, index):
...         for chain in self.chains(index):
...             answer = chain.reader(self.memory).read()[::-1]
...             self.complete(index, chain, chain.writer(self.memory).write(answer))

`drive` puts it on a bus and plays the guest, with either transport and either kind of ring, and without a hypervisor:

>>> with drive(Reverse(), transport="pci", ring="packed") as driver:
...     driver.request(0, b"live", into=4)
b'evil'

In a machine, a `VirtioMmio` or a `VirtioPci` around a device is what goes on the bus. `queue` has the virtqueues, for
those who write a device without the base class; `devices` has block, net, console and rng; `constants` has the numbers,
named as in Linux's headers. ``python -m pyvmm_virtio.conformance`` and ``python -m pyvmm_virtio.fuzz`` try a device.

Source: the VIRTIO 1.3 specification, whose sections docstrings and comments name.
"""

from __future__ import annotations

__version__ = "0.1.0"

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_virtio.device import VirtioDevice as VirtioDevice
    from pyvmm_virtio.driver.drive import drive as drive
    from pyvmm_virtio.errors import VirtioError as VirtioError
    from pyvmm_virtio.errors import VirtqueueError as VirtqueueError
    from pyvmm_virtio.queue.chain import Descriptor as Descriptor
    from pyvmm_virtio.queue.chain import DescriptorChain as DescriptorChain
    from pyvmm_virtio.queue.packed import PackedQueue as PackedQueue
    from pyvmm_virtio.queue.split import SplitQueue as SplitQueue
    from pyvmm_virtio.transport.mmio import VirtioMmio as VirtioMmio
    from pyvmm_virtio.transport.pci import VirtioPci as VirtioPci

_HOMES = {
    "device": "VirtioDevice",
    "driver.drive": "drive",
    "errors": "VirtioError VirtqueueError",
    "queue.chain": "Descriptor DescriptorChain",
    "queue.packed": "PackedQueue",
    "queue.split": "SplitQueue",
    "transport.mmio": "VirtioMmio",
    "transport.pci": "VirtioPci",
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
