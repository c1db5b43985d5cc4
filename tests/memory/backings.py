"""Every backing of guest memory, laid out the same: 0x1000-0x2fff in two regions, a hole, 0x8000-0x8fff."""

from __future__ import annotations

import mmap
import os
import tempfile
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import pytest

import pyvmm_memory as pm
from pyvmm_memory.mmap_region import PROT_RW

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

LAYOUT = [(0x1000, 0x1000), (0x2000, 0x1000), (0x8000, 0x1000)]
SIZE = 0x3000
PLACES = (0, 0x1000, 0x2000)


def sparse_file(stack: ExitStack) -> int:
    fd = os.open(tempfile.gettempdir(), os.O_RDWR | os.O_TMPFILE, 0o600)
    stack.callback(os.close, fd)
    os.ftruncate(fd, SIZE)
    return fd


def anonymous(stack: ExitStack) -> pm.GuestMemoryMmap:
    return stack.enter_context(pm.GuestMemoryMmap.from_ranges(LAYOUT))


def tracked(stack: ExitStack) -> pm.GuestMemoryMmap:
    return stack.enter_context(pm.GuestMemoryMmap.from_ranges(LAYOUT, bitmap=pm.AtomicBitmap))


def in_file(stack: ExitStack) -> pm.GuestMemoryMmap:
    file = sparse_file(stack)
    places = [(start, size, pm.FileOffset(file, at)) for at, (start, size) in zip(PLACES, LAYOUT, strict=True)]
    return stack.enter_context(pm.GuestMemoryMmap.from_ranges_with_files(places))


def in_memfd(stack: ExitStack) -> pm.GuestMemoryMmap:
    return stack.enter_context(pm.from_memfd(LAYOUT))


def private(stack: ExitStack) -> pm.GuestMemoryMmap:
    file = sparse_file(stack)
    regions = [
        pm.GuestRegionMmap(start, size, pm.MmapRegion.build(pm.FileOffset(file, at), size, PROT_RW, mmap.MAP_PRIVATE))
        for at, (start, size) in zip(PLACES, LAYOUT, strict=True)
    ]
    return stack.enter_context(pm.GuestMemoryMmap(regions))


def lazy(stack: ExitStack) -> pm.GuestMemoryMmap:
    file = sparse_file(stack)
    memory = stack.enter_context(pm.GuestMemoryMmap.from_ranges(LAYOUT))
    try:
        for at, region in zip(PLACES, memory, strict=True):
            pm.UserFault(region, pm.FileOffset(file, at))
    except pm.HostRefused as error:
        pytest.skip(str(error))
    return memory


def reserved(stack: ExitStack) -> pm.GuestMemoryMmap:
    memory, reservation = pm.contiguous(LAYOUT)
    stack.enter_context(reservation)
    return stack.enter_context(memory)


def raw(stack: ExitStack) -> pm.GuestMemoryMmap:
    from pyvmm_memory.raw import map_at, unmap

    regions = []
    for start, size in LAYOUT:
        address = map_at(0, size, PROT_RW, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        stack.callback(unmap, address, size)
        regions.append(pm.GuestRegionMmap.new(pm.MmapRegion.build_raw(address, size, PROT_RW, 0), start))
    return stack.enter_context(pm.GuestMemoryMmap(regions))


def guest_memfd(stack: ExitStack) -> pm.GuestMemoryMmap:
    kvm = pytest.importorskip("pyvmm_kvm")
    try:
        vm = stack.enter_context(stack.enter_context(kvm.Kvm()).create_vm())
        # GUEST_MEMFD_FLAG_MMAP and GUEST_MEMFD_FLAG_INIT_SHARED of linux/kvm.h
        return stack.enter_context(pm.from_guest_memfd(LAYOUT, lambda size: vm.create_guest_memfd(size, 3)))
    except OSError as error:
        pytest.skip(f"no guest_memfd that the host may map here: {error}")


def through_iommu(stack: ExitStack) -> pm.IommuMemory:
    # scattered: each page of the view lies elsewhere, in another order
    backend = stack.enter_context(pm.GuestMemoryMmap.from_ranges([(0x10_0000, 0x10000)]))
    iommu = pm.Iommu()
    # the hole is mapped too, to where there is no memory
    iommu.iotlb.set_mapping(0x1000, 0x80_0000, 0x8000, pm.Permissions.ReadWrite)
    for number, (start, size) in enumerate(LAYOUT):
        iommu.iotlb.set_mapping(start, 0x10_8000 - 0x2000 * number, size, pm.Permissions.ReadWrite)
    return pm.IommuMemory(backend, iommu, True)


def past_iommu(stack: ExitStack) -> pm.IommuMemory:
    return pm.IommuMemory(anonymous(stack), pm.Iommu(), False)


BACKINGS: dict[str, Callable[[ExitStack], pm.GuestMemory]] = {
    make.__name__: make
    for make in (
        anonymous, tracked, in_file, in_memfd, private, lazy, reserved, raw, guest_memfd, through_iommu, past_iommu,
    )
}  # fmt: skip


@contextmanager
def backing(name: str) -> Iterator[pm.GuestMemory]:
    with ExitStack() as stack:
        yield BACKINGS[name](stack)


def rounds(default: int) -> int:
    """How often to repeat: `PYVMM_ROUNDS` in the environment asks for more (see the tests that use it)."""
    return int(os.environ.get("PYVMM_ROUNDS", default))
