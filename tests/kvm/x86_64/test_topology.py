"""What each processor of a machine is told about its place, read back as the manuals say and as kernels do."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pyvmm_kvm import CpuId, CpuIdEntry, CpuidPolicy, Hlt, IoOut, Kvm
from pyvmm_kvm.cap import Cap
from pyvmm_kvm.x86_64.topology import describe

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from .conftest import Guest

COUNTS = (1, 2, 3, 8, 255, 300)
SIGNIFICANT = 1


def vendor(name: bytes) -> dict[str, int]:
    return {
        register: int.from_bytes(name[at : at + 4], "little") for register, at in (("ebx", 0), ("edx", 4), ("ecx", 8))
    }


def intel() -> CpuId:
    """What KVM offers on a server of two packages with 20 cores and 40 threads each, as processor 77 of 80 sees it."""
    table = CpuId([CpuIdEntry(0, eax=0x1F, **vendor(b"GenuineIntel"))])
    table.append(CpuIdEntry(1, eax=0x606A6, ebx=0x4D400800, ecx=0x77FAFBBF, edx=0xBFEBFBFF))
    caches = ((0x7C004121, 0x02C0003F), (0x7C004122, 0x01C0003F), (0x7C004143, 0x04C0003F), (0x7C0FC163, 0x02C0003F))
    for index, (eax, ebx) in enumerate([*caches, (0, 0)]):
        table.append(CpuIdEntry(4, index, SIGNIFICANT, eax, ebx))
    # KVM keeps nothing of the levels but, in some versions, the host's ids
    table += [CpuIdEntry(leaf, 0, SIGNIFICANT, edx=77) for leaf in (0xB, 0x1F)]
    table += [CpuIdEntry(0x80000000, eax=0x80000008), CpuIdEntry(0x80000001, ecx=0x121, edx=0x2C100800)]
    table.append(CpuIdEntry(0x80000008, eax=0x3934, ebx=0x200))
    return table


def amd() -> CpuId:
    """What KVM offers on a server with 64 cores and 128 threads, as processor 77 sees it."""
    table = CpuId([CpuIdEntry(0, eax=0x10, **vendor(b"AuthenticAMD"))])
    table.append(CpuIdEntry(1, eax=0x830F10, ebx=0x4D800800, ecx=0x7EF8320B, edx=0x178BFBFF))
    table.append(CpuIdEntry(4, 0, SIGNIFICANT))
    table.append(CpuIdEntry(0xB, 0, SIGNIFICANT, edx=77))
    table.append(CpuIdEntry(0x80000000, eax=0x80000021, **vendor(b"AuthenticAMD")))
    table.append(CpuIdEntry(0x80000001, ecx=0x75C237FF, edx=0x2FD3FBFF))
    table.append(CpuIdEntry(0x80000008, eax=0x3030, ebx=0x111EF657, ecx=0x3707F))
    caches = ((0x4121, 0x01C0003F), (0x4122, 0x01C0003F), (0x4143, 0x01C0003F), (0x1C163, 0x03C0003F))
    for index, (eax, ebx) in enumerate([*caches, (0, 0)]):
        table.append(CpuIdEntry(0x8000001D, index, SIGNIFICANT, eax, ebx))
    table.append(CpuIdEntry(0x8000001E, eax=77, ebx=0x126, ecx=0x103))
    return table


TABLES = {"intel": intel, "amd": amd}


def some(processors: int) -> Iterator[int]:
    """The first and last, and one in the middle."""
    yield from sorted({0, processors // 2, processors - 1})


@pytest.fixture(params=TABLES)
def made_by(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.mark.parametrize("processors", COUNTS)
def test_leaf_1_counts_and_numbers(made_by: str, processors: int) -> None:
    host = TABLES[made_by]().leaf(1)
    for apic_id in some(processors):
        leaf = describe(TABLES[made_by](), apic_id, processors).leaf(1)
        assert leaf.ebx >> 24 == apic_id & 0xFF
        assert leaf.ebx & 0xFFFF == host.ebx & 0xFFFF, "the cache line's size is none of this"
        assert leaf.edx >> 28 & 1 == (processors > 1)
        assert (leaf.eax, leaf.ecx, leaf.edx | 1 << 28) == (host.eax, host.ecx, host.edx | 1 << 28)
        counted = leaf.ebx >> 16 & 0xFF
        # Intel rounds up to a power of two, AMD counts
        exact = {1: 1, 2: 2, 3: 3, 8: 8, 255: 255, 300: 255}[processors]
        assert counted == (exact if made_by == "amd" else {3: 4}.get(processors, exact))


@pytest.mark.parametrize("leaf", [0xB, 0x1F])
@pytest.mark.parametrize("processors", COUNTS)
def test_levels_are_one_thread_on_each_core_of_one_package(made_by: str, processors: int, leaf: int) -> None:
    """As Linux's detect_extended_topology reads them: shifted by the last valid level, all ids are the package's."""
    places = set()
    for apic_id in range(processors):
        table = describe(TABLES[made_by](), apic_id, processors)
        if table.find(leaf) is None:
            assert (made_by, leaf) == ("amd", 0x1F), "a leaf that the host lacks is not made up"
            return
        levels = [entry for entry in table if entry.function == leaf]
        assert [entry.index for entry in levels] == [0, 1, 2]
        assert {entry.flags for entry in levels} == {SIGNIFICANT}
        assert [entry.edx for entry in levels] == [apic_id] * 3
        assert [entry.ecx for entry in levels] == [1 << 8 | 0, 2 << 8 | 1, 0 << 8 | 2]
        threads, cores, end = levels
        assert (threads.eax, threads.ebx) == (0, 1)
        assert (end.eax, end.ebx) == (0, 0)
        assert cores.ebx == processors
        assert 1 << cores.eax >= processors > 1 << cores.eax >> 1
        places.add((apic_id >> cores.eax, apic_id >> threads.eax))
    assert {package for package, _ in places} == {0}
    assert len(places) == processors


@pytest.mark.parametrize("processors", COUNTS)
def test_caches_beyond_the_second_level_are_shared(made_by: str, processors: int) -> None:
    number = 4 if made_by == "intel" else 0x8000001D
    width = (processors - 1).bit_length()
    for apic_id in some(processors):
        table = describe(TABLES[made_by](), apic_id, processors)
        caches = [entry for entry in table if entry.function == number]
        assert len(caches) == 5
        assert caches[-1].eax == 0
        for entry, host in zip(caches, (entry for entry in TABLES[made_by]() if entry.function == number), strict=True):
            assert entry.eax & 0x3FFF == host.eax & 0x3FFF
            assert (entry.ebx, entry.ecx, entry.edx) == (host.ebx, host.ecx, host.edx)
        sharing = [(entry.eax >> 14 & 0xFFF) + 1 for entry in caches[:-1]]
        assert sharing == [1, 1, 1, 1 << width]
        cores = {entry.eax >> 26 for entry in caches[:-1]}
        # six bits of Intel's, reserved in AMD's
        assert cores == {min((1 << width) - 1, 63) if made_by == "intel" else 0}
    if made_by == "amd":
        assert describe(amd(), 0, processors).leaf(4).eax == 0


@pytest.mark.parametrize("processors", COUNTS)
def test_what_only_amd_has(processors: int) -> None:
    host = amd()
    for apic_id in some(processors):
        table = describe(amd(), apic_id, processors)
        extended = table.leaf(0x80000001)
        assert extended.ecx >> 1 & 1 == (processors > 1), "CmpLegacy: the processors of leaf 1 are cores"
        assert extended.ecx | 2 == host.leaf(0x80000001).ecx | 2, "topology extensions stay"
        sizes = table.leaf(0x80000008).ecx
        assert sizes & 0xFF == min(processors - 1, 255)
        assert sizes >> 12 & 0xF == (processors - 1).bit_length()
        assert sizes & ~0xF0FF == 0x30000, "the size of the performance counter's TSC is none of this"
        place = table.leaf(0x8000001E)
        assert place.eax == apic_id
        assert place.ebx == apic_id & 0xFF, "a thread on each core, which has this number"
        assert place.ecx == 0, "one node"


@pytest.mark.parametrize("processors", COUNTS)
def test_what_intel_does_not_have_stays(processors: int) -> None:
    host, table = intel(), describe(intel(), processors - 1, processors)
    for leaf in (0x80000001, 0x80000008):
        assert table.leaf(leaf) == host.leaf(leaf)
    assert table.find(0x8000001E) is None


def test_a_processor_that_is_not_there_is_refused() -> None:
    for apic_id, processors in ((1, 1), (-1, 2), (8, 8), (0, 0), (0, -1)):
        with pytest.raises(ValueError, match=f"no processor {apic_id} among {processors}"):
            describe(intel(), apic_id, processors)
    with pytest.raises(ValueError, match="no processor 3 among 1"):
        CpuidPolicy(amd()).table(3)


def test_tables_with_little_in_them_are_described_too() -> None:
    assert describe(CpuId(), 0, 4) == []
    only = describe(CpuId([CpuIdEntry(1)]), 1, 2)
    assert only.leaf(1).ebx == 1 << 24 | 2 << 16
    policy = CpuidPolicy(intel())
    policy.table(1, 4)
    assert policy.table(0, 1) == describe(intel(), 0, 1), "each table is one of its own"


class Offer:
    """As much of `Kvm` as a policy asks."""

    def __init__(self, table: CpuId, deadline: int) -> None:
        self.table = table
        self.deadline = deadline

    def get_supported_cpuid(self) -> CpuId:
        return self.table

    def check_extension_raw(self, number: int) -> int:
        return self.deadline if number == Cap.TSC_DEADLINE_TIMER else 0


def on_hardware() -> CpuId:
    """Leaf 1 as KVM gives it there: no hypervisor, no TSC deadline."""
    table = intel()
    table.leaf(1).ecx &= ~(1 << 31 | 1 << 24)
    table.append(CpuIdEntry(7, 0, SIGNIFICANT, ebx=0))
    table.append(CpuIdEntry(0x40000001, eax=1 << 7 | 1 << 3 | 1))
    return table


@pytest.mark.parametrize("deadline", [0, 1])
def test_a_guest_is_told_that_it_is_one(deadline: int) -> None:
    policy = CpuidPolicy.host(Offer(on_hardware(), deadline))  # type: ignore[arg-type]
    table = policy.table()
    assert table.leaf(1).ecx >> 31
    assert table.leaf(1).ecx >> 24 & 1 == deadline
    assert table.leaf(1).ecx >> 21 & 1, "x2APIC is KVM's to offer"
    assert table.leaf(7).ebx == 1 << 6 | 1 << 13, "x87 features that a guest cannot count on are missing"
    assert table.leaf(0x40000001).eax == 1 << 7 | 1 << 3 | 1


def test_what_depends_on_an_apic_in_the_kernel_goes_without_one() -> None:
    policy = CpuidPolicy.host(Offer(on_hardware(), 1), kernel_apic=False)  # type: ignore[arg-type]
    table = policy.table()
    assert table.leaf(1).ecx >> 31
    assert not table.leaf(1).ecx & (1 << 24 | 1 << 21)
    assert table.leaf(0x40000001).eax == 1 << 3 | 1, "no KVM_FEATURE_PV_UNHALT"


@pytest.mark.kvm
def test_the_guest_sees_what_it_is_told(kvm: Kvm, boot: Callable[..., Guest]) -> None:
    """Executes CPUID: mov eax,1; cpuid; shr ecx,31; mov al,cl; out 0x10,al; shr ebx,24; mov al,bl; out 0x11,al; hlt."""
    guest = boot("66b801000000 0fa2 66c1e91f 88c8 e610 66c1eb18 88d8 e611 f4", prepare=lambda vm: vm.create_irq_chip())
    guest.vcpu.set_cpuid2(CpuidPolicy.host(kvm).table(5, 8))
    seen = []
    for _ in range(2):
        exit_ = guest.vcpu.run()
        assert isinstance(exit_, IoOut)
        seen.append((exit_.port, exit_.data[0]))
    assert seen == [(0x10, 1), (0x11, 5)]
    assert Hlt.reason == 5
