"""Segments, descriptors and page tables that put a vCPU into real, protected or long mode."""

from __future__ import annotations

import struct

from pyvmm_kvm.x86_64.structs import CR0_PE, CR0_PG, CR4_PAE, EFER_LMA, EFER_LME, Segment

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pyvmm_kvm.vcpu import VcpuFd

_PRESENT_WRITABLE, _LARGE = 1 << 0 | 1 << 1, 1 << 7
_PAGE = 4096
_ENTRIES = _PAGE // 8
_GIB = 1 << 30
_LARGE_PAGE_SHIFT = 21
# segment types (Intel SDM volume 3, 3.4.5.1), accessed
_CODE_READABLE, _DATA_WRITABLE = 11, 3
_RFLAGS_ALWAYS_ONE = 1 << 1


def code_segment(selector: int = 8, *, bits: int = 32, dpl: int = 0) -> Segment:
    """Return a flat code segment of 4 GiB, for 16, 32 or 64 bits."""
    return Segment(
        limit=0xFFFFFFFF,
        selector=selector,
        type=_CODE_READABLE,
        present=1,
        dpl=dpl,
        db=bits == 32,
        s=1,
        l=bits == 64,
        g=1,
    )


def data_segment(selector: int = 16, *, dpl: int = 0) -> Segment:
    """Return a flat writable data segment of 4 GiB."""
    return Segment(limit=0xFFFFFFFF, selector=selector, type=_DATA_WRITABLE, present=1, dpl=dpl, db=1, s=1, g=1)


def descriptor(segment: Segment) -> int:
    """Return the 8-byte descriptor of a segment, for a table in guest memory (Intel SDM volume 3, 3.4.5).

    >>> hex(descriptor(code_segment(bits=64)))
    '0xaf9b000000ffff'
    """
    limit = segment.limit >> 12 if segment.g else segment.limit
    access = segment.type | segment.s << 4 | segment.dpl << 5 | segment.present << 7
    flags = segment.avl | segment.l << 1 | segment.db << 2 | segment.g << 3
    low = limit & 0xFFFF | (segment.base & 0xFFFFFF) << 16 | access << 40
    return low | (limit >> 16 & 0xF) << 48 | flags << 52 | (segment.base >> 24 & 0xFF) << 56


def setup_real_mode(vcpu: VcpuFd, entry: int) -> None:
    """Start at a linear address below 1 MiB with all segments at 0 and interrupts off."""
    sregs = vcpu.get_sregs()
    for name in ("cs", "ds", "es", "fs", "gs", "ss"):
        segment = getattr(sregs, name)
        segment.base, segment.selector = 0, 0
    sregs.cs.base = entry & ~0xFFFF
    sregs.cs.selector = sregs.cs.base >> 4
    sregs.cr0 &= ~(CR0_PE | CR0_PG)
    vcpu.set_sregs(sregs)
    _start(vcpu, entry & 0xFFFF)


def setup_protected_mode(vcpu: VcpuFd, entry: int) -> None:
    """Start in 32-bit protected mode with flat segments and no paging."""
    _flat(vcpu, 32, 0)
    _start(vcpu, entry)


def setup_long_mode(vcpu: VcpuFd, memory: Buffer, entry: int, tables: int = 0x9000, gib: int = 4) -> None:
    """Start in 64-bit mode with the first `gib` GiB identity-mapped in 2 MiB pages.

    Args:
        vcpu: a stopped vCPU.
        memory: guest memory whose first byte is guest physical address 0.
        entry: where to start.
        tables: where the page tables go; they take 2 + `gib` pages.
        gib: how much to map, at most 512.
    """
    if not 1 <= gib <= _ENTRIES:
        raise ValueError(f"one page directory pointer table maps 1 to 512 GiB, not {gib}")
    view = memoryview(memory).cast("B")
    if tables % _PAGE or tables + (2 + gib) * _PAGE > len(view):
        raise ValueError(f"page tables at {tables:#x} are not {2 + gib} whole pages inside {len(view):#x} bytes")

    def write(page: int, entries: list[int]) -> None:
        view[page : page + 8 * len(entries)] = struct.pack(f"<{len(entries)}Q", *entries)

    pointers = tables + _PAGE
    write(tables, [pointers | _PRESENT_WRITABLE])
    directories = [tables + (2 + number) * _PAGE for number in range(gib)]
    write(pointers, [page | _PRESENT_WRITABLE for page in directories])
    for number, page in enumerate(directories):
        base = number * _GIB
        write(page, [base + (index << _LARGE_PAGE_SHIFT) | _PRESENT_WRITABLE | _LARGE for index in range(_ENTRIES)])
    _flat(vcpu, 64, tables)
    _start(vcpu, entry)


def _flat(vcpu: VcpuFd, bits: int, cr3: int) -> None:
    sregs = vcpu.get_sregs()
    sregs.cs = code_segment(bits=bits)
    for name in ("ds", "es", "fs", "gs", "ss"):
        setattr(sregs, name, data_segment())
    sregs.cr0 |= CR0_PE
    if bits == 64:
        sregs.cr3 = cr3
        sregs.cr4 |= CR4_PAE
        sregs.efer |= EFER_LME | EFER_LMA
        sregs.cr0 |= CR0_PG
    vcpu.set_sregs(sregs)


def _start(vcpu: VcpuFd, rip: int) -> None:
    regs = vcpu.get_regs()
    regs.rip, regs.rflags = rip, _RFLAGS_ALWAYS_ONE
    vcpu.set_regs(regs)
