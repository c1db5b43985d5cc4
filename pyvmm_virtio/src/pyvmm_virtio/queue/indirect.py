"""What chains of both formats have to obey: indirect tables, and the buffers as a whole."""

from __future__ import annotations

from pyvmm_memory import GuestMemoryError, InvalidBackendAddress, Permissions
from pyvmm_virtio.constants.ring import VRING_DESC_F_WRITE
from pyvmm_virtio.errors import (
    DescriptorChainOverflow,
    InvalidChain,
    InvalidIndirectDescriptor,
    InvalidIndirectDescriptorTable,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_virtio.memory import GuestMemory
    from pyvmm_virtio.queue.base import BaseQueue
    from pyvmm_virtio.queue.chain import RawDescriptor

READ = Permissions.Read
MAX_TABLE_BYTES = 16 * 0xFFFF
MAX_CHAIN_BYTES = 1 << 32


def open_table(queue: BaseQueue, memory: GuestMemory, where: tuple[int, int], addr: int, length: int) -> memoryview:
    """Return a view of an indirect table, or a copy where it crosses regions of memory.

    `where` is the chain's head, and the place of the descriptor that stands for the table.

    Raises InvalidIndirectDescriptor, InvalidIndirectDescriptorTable.
    """
    if not queue.indirect:
        reason = "an indirect descriptor, but INDIRECT_DESC was not negotiated"
        raise InvalidIndirectDescriptor(queue.index, *where, reason)
    if length % 16 or not 0 < length <= MAX_TABLE_BYTES:
        reason = f"an indirect table of {length} bytes: it is a multiple of 16, at most {MAX_TABLE_BYTES}"
        raise InvalidIndirectDescriptorTable(queue.index, *where, reason)
    try:
        try:
            return memory.get_slice(addr, length, READ)
        except InvalidBackendAddress:
            return memoryview(b"".join(memory.get_slices(addr, length, READ)))
    except GuestMemoryError as error:
        reason = f"the indirect table of {length} bytes at {addr:#x} is not in guest memory: {error}"
        # without the frames it came through, which hold views of the part that is in memory
        raise InvalidIndirectDescriptorTable(queue.index, *where, reason) from error.with_traceback(None)


def check_buffers(queue: BaseQueue, head: int, chain: list[RawDescriptor], total: int) -> None:
    """Check what the buffers of a chain have to obey together; `total` is their length in bytes."""
    if total > MAX_CHAIN_BYTES:
        # 2.7.5.2: "Drivers MUST NOT add a descriptor chain longer than 2^32 bytes in total"
        left = MAX_CHAIN_BYTES
        index = next(at for at, raw in enumerate(chain) if (left := left - raw[1]) < 0)
        raise DescriptorChainOverflow(queue.index, head, index, f"its buffers have {total} bytes, more than 2**32")
    if queue.strict_order:
        writable = False
        for index, raw in enumerate(chain):
            if raw[2] & VRING_DESC_F_WRITE:
                writable = True
            elif writable:
                # 2.7.4.2: "MUST place any device-writable descriptor elements after any device-readable"
                raise InvalidChain(queue.index, head, index, "a readable buffer comes after a writable one")
