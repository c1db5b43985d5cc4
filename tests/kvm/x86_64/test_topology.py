"""What CPUID tells a guest of the place of its processors, on tables of AMD's and Intel's as data."""

from __future__ import annotations

import pytest

from pyvmm_kvm import CpuId, CpuIdEntry, CpuidPolicy, Kvm
from pyvmm_kvm.x86_64.cpuid import SIGNIFICANT_INDEX as INDEXED

AMD = {"ebx": 0x68747541, "edx": 0x69746E65, "ecx": 0x444D4163}
INTEL = {"ebx": 0x756E6547, "edx": 0x49656E69, "ecx": 0x6C65746E}
# type data or unified, level, and the sharing and cores of some host's processor, which must not stay
L1, L2, L3 = (kind | level << 5 | 0x7F << 14 | 0x3F << 26 for kind, level in ((1, 1), (3, 2), (3, 3)))
NONE = 0
COUNTS = [1, 2, 3, 8, 255, 300]


def caches(leaf: int) -> list[CpuIdEntry]:
    return [CpuIdEntry(leaf, index, INDEXED, eax) for index, eax in enumerate((L1, L2, L3, NONE))]


def host(vendor: dict[str, int]) -> CpuId:
    """Return the table of a host that answered on its processor 5 of 16."""
    return CpuId([
        CpuIdEntry(0, eax=0x1F, **vendor),
        CpuIdEntry(1, eax=0x800F12, ebx=5 << 24 | 16 << 16 | 0x0800, ecx=1 << 31, edx=1 << 28),
        *caches(4),
        CpuIdEntry(0xB, 0, INDEXED, 1, 2, 0x100, 5),
        CpuIdEntry(0xB, 1, INDEXED, 4, 16, 0x201, 5),
        CpuIdEntry(0x80000001, ecx=1 << 22 | 1 << 1),
        CpuIdEntry(0x80000008, eax=0x3030, ecx=4 << 12 | 15),
        *caches(0x8000001D),
        CpuIdEntry(0x8000001E, eax=5, ebx=0x102, ecx=0x301),
    ])  # fmt: skip


@pytest.mark.parametrize("vendor", [AMD, INTEL], ids=["AMD", "Intel"])
@pytest.mark.parametrize("count", COUNTS)
def test_every_leaf_says_the_same(vendor: dict[str, int], count: int) -> None:
    width = (count - 1).bit_length()
    is_amd = vendor is AMD
    for number in {0, count // 2, count - 1}:
        table = CpuidPolicy(host(vendor)).table(number, count)
        one = table.leaf(1)
        assert one.ebx >> 24 == number & 0xFF
        assert one.ebx >> 16 & 0xFF == min(count if is_amd else 1 << width, 255)
        assert one.ebx & 0xFFFF == 0x0800
        assert one.edx >> 28 & 1 == (count > 1)
        for leaf in (4, 0x8000001D):
            shared = [table.leaf(leaf, index).eax >> 14 & 0xFFF for index in range(3)]
            assert shared == [0, 0, (1 << width) - 1]
            assert table.leaf(leaf, 3).eax == NONE
        assert table.leaf(4, 0).eax >> 26 == min((1 << width) - 1, 63)
        levels = [entry for entry in table if entry.function == 0xB]
        assert [(entry.eax, entry.ebx, entry.ecx) for entry in levels] == [
            (0, 1, 0x100), (width, count, 0x201), (0, 0, 2),
        ]  # fmt: skip
        assert {entry.edx for entry in levels} == {number}
        assert {entry.flags for entry in levels} == {INDEXED}
        assert table.leaf(0x80000001).ecx == 1 << 22 | (2 if is_amd and count > 1 else 0)
        assert table.leaf(0x80000008).ecx == (min(count - 1, 255) | width << 12 if is_amd else 4 << 12 | 15)
        node = table.leaf(0x8000001E)
        assert (node.eax, node.ebx, node.ecx) == (number, number & 0xFF, 0)


def test_leaves_that_a_host_lacks_are_not_made_up() -> None:
    table = CpuidPolicy(CpuId([CpuIdEntry(0, eax=1, **AMD), CpuIdEntry(1)])).table(1, 2)
    assert list(table.functions()) == [0, 1]


@pytest.mark.parametrize(("number", "count"), [(1, 1), (-1, 2), (2, 2), (0, 0)])
def test_a_processor_that_is_not_there(number: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"no processor {number} among {count}"):
        CpuidPolicy(host(AMD)).table(number, count)


@pytest.mark.kvm
def test_a_guest_is_told_that_it_is_one(kvm: Kvm) -> None:
    policy = CpuidPolicy.host(kvm)
    assert "hypervisor" in policy.features()
    assert ("tsc_deadline" in policy.features()) == bool(kvm.check_extension_raw(72))
    without = CpuidPolicy.host(kvm, kernel_apic=False)
    assert not {"x2apic", "tsc_deadline"} & set(without.features())
    if (paravirtual := without.table().find(0x40000001)) is not None:
        assert not paravirtual.eax >> 7 & 1
