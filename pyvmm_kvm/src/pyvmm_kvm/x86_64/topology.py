"""What CPUID says about the place of one processor among others: a package of cores with a thread each.

An APIC id is the number of the vCPU. Every leaf that counts or numbers processors says the same, or a guest's kernel
warns of its firmware and groups its processors wrongly: leaf 1, the caches in 4 and 0x8000001D, the levels in 0xB and
0x1F, and AMD's 0x80000008, 0x8000001E and 0x80000026. Sources: Intel SDM volume 2A, CPUID; AMD APM volume 3, appendix
E.4.

Where a field is too narrow for a large machine it holds its largest value, or of an id the low bits; 0xB and 0x1F have
32 bits for it.
"""

from __future__ import annotations

from pyvmm_kvm.x86_64.cpuid import SIGNIFICANT_INDEX, CpuIdEntry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_kvm.x86_64.cpuid import CpuId

HTT, CMP_LEGACY = 1 << 28, 1 << 1
# AMD's 0x80000026 calls the same two levels core and complex, with the same numbers
LEVELS = (0xB, 0x1F, 0x80000026)
TOPOLOGY_EXTENSIONS, EXTENDED_ID = 1 << 22, 0x8000001E
NO_LEVEL, SMT, CORE = 0, 1, 2
LAST_PRIVATE_CACHE = 2  # what lies beyond the second level is shared by the package


def describe(table: CpuId, apic_id: int, processors: int) -> CpuId:
    """Make a table that of one processor of a package, and return it.

    Args:
        table: is changed.
        apic_id: its number.
        processors: how many there are, all cores of their own.

    Raises:
        ValueError: there is no processor of that number among so many.
    """
    if not 0 <= apic_id < processors:
        raise ValueError(f"there is no processor {apic_id} among {processors}: they count from 0")
    width = (processors - 1).bit_length()
    amd = _is_amd(table)
    if amd or table.find(0) is None:
        _add_extended_id(table)
    for entry in table:
        match entry.function:
            case 1:
                # EBX[23:16], valid with HTT: Intel's is "the maximum number of addressable IDs for logical processors",
                # AMD's how many there are
                count = min(processors if amd else 1 << width, 0xFF)
                entry.ebx = entry.ebx & 0xFFFF | count << 16 | (apic_id & 0xFF) << 24
                entry.edx = entry.edx | HTT if processors > 1 else entry.edx & ~HTT
            case 4 | 0x8000001D:
                _share_cache(entry, width, intel=entry.function == 4)
            case 0x80000001:
                # AMD: the processors that leaf 1 counts are cores, not threads
                entry.ecx = entry.ecx | CMP_LEGACY if amd and processors > 1 else entry.ecx & ~CMP_LEGACY
            case 0x80000008:
                # NC, the number of threads less one, and how many bits of the APIC id tell them apart
                if amd:
                    entry.ecx = entry.ecx & ~0xF0FF | min(processors - 1, 0xFF) | min(width, 0xF) << 12
            case 0x8000001E:
                # the id, which core of how many threads it is on, and which node of how many; read where ECX[22] of
                # 0x80000001 (topology extensions) is set, which stays as the host has it
                entry.eax, entry.ebx, entry.ecx = apic_id, apic_id & 0xFF, 0
    for leaf in LEVELS:
        if table.find(leaf) is not None:
            _levels(table, leaf, apic_id, processors, width)
    return table


def _is_amd(table: CpuId) -> bool:
    vendor = table.find(0)
    return vendor is not None and vendor.ebx in (0x68747541, 0x6F677948)  # "Auth", and "Hygo" of the same make


def _add_extended_id(table: CpuId) -> None:
    """Have the leaf with the extended APIC id where the features promise it: a guest takes what is not there for 0."""
    features, highest = table.find(0x80000001), table.find(0x80000000)
    if features is None or not features.ecx & TOPOLOGY_EXTENSIONS or table.find(EXTENDED_ID) is not None:
        return
    table.append(CpuIdEntry(EXTENDED_ID))
    if highest is not None:
        highest.eax = max(highest.eax, EXTENDED_ID)


def _share_cache(entry: CpuIdEntry, width: int, *, intel: bool) -> None:
    """Write by how many processors a cache is shared, less one, and for Intel how many cores the package has."""
    level = entry.eax >> 5 & 7
    sharing = (1 << width) - 1 if level > LAST_PRIVATE_CACHE else 0
    cores = min((1 << width) - 1, 0x3F) if intel else 0
    if entry.eax & 0x1F:  # 0: no more caches
        entry.eax = entry.eax & 0x3FFF | min(sharing, 0xFFF) << 14 | cores << 26


def _levels(table: CpuId, leaf: int, apic_id: int, processors: int, width: int) -> None:
    """Write the levels of the extended topology: how far to shift an id to come to the next one up."""
    table.retain(lambda entry: entry.function != leaf)
    for index, (shift, count, kind) in enumerate([(0, 1, SMT), (width, processors, CORE), (0, 0, NO_LEVEL)]):
        table.append(CpuIdEntry(leaf, index, SIGNIFICANT_INDEX, shift, min(count, 0xFFFF), kind << 8 | index, apic_id))
