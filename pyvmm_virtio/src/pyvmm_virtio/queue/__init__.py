"""Virtqueues as a device sees them: split and packed rings behind one protocol, and the chains that come out.

>>> from pyvmm_memory import GuestMemoryMmap
>>> from pyvmm_virtio.queue import SplitQueue
>>> memory = GuestMemoryMmap.from_ranges([(0, 0x10000)])
>>> queue = SplitQueue(16)
>>> queue.set_size(4)
>>> queue.set_desc_table_address(0x1000)
>>> queue.set_avail_ring_address(0x2000)
>>> queue.set_used_ring_address(0x3000)
>>> queue.set_ready(True)
>>> queue.is_valid(memory)
True

What a driver does: one descriptor of 5 bytes to read, and its head in the available ring.

>>> memory.write_slice(b"hello", 0x8000)
>>> memory.write_u64(0x8000, 0x1000), memory.write_u32(5, 0x1008)
(None, None)
>>> memory.write_u16(0, 0x2004), memory.write_u16(1, 0x2002)
(None, None)

And the device:

>>> chain = queue.pop_descriptor_chain(memory)
>>> list(chain)
[Descriptor(addr=0x8000, len=5, flags=0x0, next=0)]
>>> chain.reader(memory).read(5)
b'hello'
>>> queue.add_used(memory, chain.head_index, 0)
>>> queue.needs_notification(memory)
True

Source: VIRTIO 1.3, 2.6 to 2.8. Names are those of rust-vmm's ``virtio-queue``.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_virtio.queue.base import MAX_QUEUE_SIZE as MAX_QUEUE_SIZE
    from pyvmm_virtio.queue.buffers import Reader as Reader
    from pyvmm_virtio.queue.buffers import Writer as Writer
    from pyvmm_virtio.queue.chain import Descriptor as Descriptor
    from pyvmm_virtio.queue.chain import DescriptorChain as DescriptorChain
    from pyvmm_virtio.queue.packed import PackedQueue as PackedQueue
    from pyvmm_virtio.queue.split import SplitQueue as SplitQueue

_HOMES = {
    "base": "MAX_QUEUE_SIZE",
    "buffers": "Reader Writer",
    "chain": "Descriptor DescriptorChain",
    "packed": "PackedQueue",
    "split": "SplitQueue",
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
