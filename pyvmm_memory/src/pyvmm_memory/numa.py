"""Which NUMA nodes of the host guest memory comes from."""

from __future__ import annotations

from enum import IntEnum

from pyvmm_memory._memory import ffi, lib
from pyvmm_memory.advice import host_pieces
from pyvmm_memory.errors import GuestMemoryError, HostRefused

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from pyvmm_memory.collection import GuestRegionCollection

BITS = 1024
ONLINE = "/sys/devices/system/node/online"


class Policy(IntEnum):
    """The policies of mbind(2)."""

    DEFAULT = 0
    PREFERRED = 1
    BIND = 2
    INTERLEAVE = 3
    LOCAL = 4


class InvalidNode(GuestMemoryError, ValueError):
    """There is no such NUMA node, or none was named where the policy needs one."""


def online_nodes() -> list[int]:
    """Return the NUMA nodes of this host; only node 0 where the kernel knows none."""
    try:
        with open(ONLINE, encoding="ascii") as file:
            text = file.read().strip()
    except FileNotFoundError:
        return [0]
    nodes: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        nodes += range(int(first), int(last or first) + 1)
    return nodes


def bind(
    memory: GuestRegionCollection,
    nodes: Iterable[int],
    addr: int | None = None,
    length: int | None = None,
    *,
    policy: Policy = Policy.BIND,
    move: bool = True,
) -> None:
    """Take `length` bytes at `addr` from these host nodes, or all of guest memory.

    Pages that are there already are moved with `move`. Raises InvalidNode, InvalidGuestAddress, HostRefused.
    """
    wanted = sorted(set(nodes))
    if any(not 0 <= node < BITS for node in wanted) or (not wanted and policy not in (Policy.DEFAULT, Policy.LOCAL)):
        raise InvalidNode(f"nodes {wanted}: this host has {online_nodes()}")
    words = ffi.new("uint64_t[]", BITS // 64)
    for node in wanted:
        words[node // 64] |= 1 << node % 64
    ranges = [(region.start, region.size) for region in memory] if addr is None else [(addr, length or 0)]
    for start, size in ranges:
        for where, address, count in host_pieces(memory, start, size):
            # the kernel reads one bit less than it is told
            result = lib.pyvmm_mbind(address, count, policy, words, BITS + 1 if wanted else 0, 2 if move else 0)
            if result < 0:
                cure = f"this host has nodes {online_nodes()}, and CONFIG_NUMA is needed"
                raise HostRefused(-result, f"binding {count:#x} bytes at {where:#x} to nodes {wanted}", cure)


def policy_of(memory: GuestRegionCollection, addr: int) -> tuple[Policy, list[int]]:
    """Return the policy at `addr` and its nodes. Raises InvalidGuestAddress, HostRefused."""
    mode = ffi.new("int *")
    words = ffi.new("uint64_t[]", BITS // 64)
    by_address = 2
    result = lib.pyvmm_get_mempolicy(memory.get_host_address(addr), mode, words, BITS + 1, by_address)
    if result < 0:
        raise HostRefused(-result, f"asking for the policy at {addr:#x}", "CONFIG_NUMA")
    return Policy(mode[0]), [node for node in range(BITS) if words[node // 64] >> node % 64 & 1]
