"""Structures and sequences without a guest: CPUID, MSRs, routes, page tables of every format, filters."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from pyvmm_kvm import (
    CpuId,
    CpuIdEntry,
    CpuidPolicy,
    IrqRoute,
    IrqRouting,
    Kvm,
    LapicState,
    MsrFilterRange,
    MsrList,
    Msrs,
    NestedState,
    RegList,
    Regs,
    Sregs,
    StateError,
    Template,
    Xsave2,
    code_segment,
    data_segment,
    descriptor,
    setup_long_mode,
    walk,
)
from pyvmm_kvm.x86_64.cpuid_policy import FEATURES, TEMPLATES

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Guest

kvm_only = pytest.mark.kvm


def test_page_tables_must_fit() -> None:
    with pytest.raises(ValueError, match="page tables"):
        setup_long_mode(None, bytearray(4096), 0, tables=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="512"):
        setup_long_mode(None, bytearray(4096), 0, gib=513)  # type: ignore[arg-type]


def test_walks_old_formats() -> None:
    memory = bytearray(0x8000)

    def put(address: int, value: int, width: int) -> None:
        memory[address : address + width] = value.to_bytes(width, "little")

    def read(address: int, length: int) -> bytes:
        return bytes(memory[address : address + length])

    none = Sregs()
    assert walk(none, read, 0x1234) is not None
    old = Sregs(cr0=1 << 31 | 1, cr3=0x1000)
    put(0x1000, 0x2003, 4)
    put(0x2000 + 4 * 5, 0x7001, 4)
    put(0x1004, 0x00400083 | 1 << 13, 4)
    found = walk(old, read, 0x5123)
    assert found is not None
    assert (found.physical, found.writable) == (0x7123, False)
    large = walk(old, read, 0x400123)
    assert large is not None
    assert large.physical == (1 << 32 | 0x400123)
    pae = Sregs(cr0=1 << 31 | 1, cr4=1 << 5, cr3=0x3000)
    put(0x3000, 0x4001, 8)
    put(0x4000, 0x200083, 8)
    found = walk(pae, read, 0x1234)
    assert found is not None
    assert (found.physical, found.writable) == (0x201234, True)
    assert Sregs(cr0=1 << 31 | 1, cr4=1 << 5 | 1 << 12, efer=1 << 10).paging == "5-level"


def test_msr_filter_ranges_are_checked() -> None:
    with pytest.raises(ValueError, match="bitmap"):
        MsrFilterRange(1, 0, 9, b"\0")
    with pytest.raises(ValueError, match="reads"):
        MsrFilterRange(0, 0, 1, b"\0")
    denied = MsrFilterRange.denying(0x100, [0x103], 8)
    assert [denied.allows(index) for index in (0x102, 0x103)] == [True, False]
    with pytest.raises(ValueError, match="not in the range"):
        denied.allows(0x99)


def test_cpuid_tables_and_policies() -> None:
    host = CpuId([CpuIdEntry(0, eax=7), CpuIdEntry(1, ecx=1 << 23, edx=1 << 4), CpuIdEntry(7, 0, 1, ebx=1 << 7)])
    policy = CpuidPolicy(host)
    assert policy.features() == ["popcnt", "smep", "tsc"]
    assert policy.without("smep").with_("nx").features() == ["nx", "popcnt", "tsc"]
    assert policy.template("x86-64-v1").features() == ["nx", "tsc"]
    table = policy.vendor("AuthenticAMD").table(3, 4)
    assert table.leaf(1).ebx >> 24 == 3
    assert table.leaf(0).ebx.to_bytes(4, "little") == b"Auth"
    assert list(policy.drop_leaves([7]).table().functions()) == [0, 1, 0x80000001]
    assert host.leaf(7).ebx == 1 << 7
    for broken in (b"", bytes([9, 0, 0, 0, 0, 0, 0, 0]), b"\xff" * 8):
        with pytest.raises(StateError):
            CpuId.from_bytes(broken)
    with pytest.raises(KeyError):
        host.leaf(9)
    with pytest.raises(ValueError, match="no CPUID feature"):
        policy.without("flying")
    with pytest.raises(ValueError, match="12 characters"):
        policy.vendor("me")
    with pytest.raises(StateError):
        bytes(CpuId(CpuIdEntry(number) for number in range(257)))
    assert "CpuIdEntry(0x0" in repr(host[0])


def test_structures_behave() -> None:
    regs = Regs(rax=1, rip=2)
    assert Regs.from_bytes(bytes(regs)) == regs == regs.copy()
    assert Regs.from_bytes(b"\x05").rax == 5
    assert "rip=0x2" in repr(regs)
    assert "rip 0000000000000002" in str(regs)
    with pytest.raises(TypeError, match="no field 'eax'"):
        Regs(eax=1)
    with pytest.raises(TypeError, match="none of the fields"):
        regs.update(object())
    sregs = Sregs()
    sregs.cs = code_segment(bits=64)
    assert sregs.cs.l == 1
    assert sregs.cs == code_segment(bits=64)
    sregs.interrupt_bitmap[1] = 7
    assert list(sregs.interrupt_bitmap) == [0, 7, 0, 0]
    assert sregs.interrupt_bitmap == [0, 7, 0, 0]
    assert descriptor(data_segment()) == 0xCF93000000FFFF
    lapic = LapicState()
    with pytest.raises(ValueError, match="multiples"):
        lapic.get_reg(4)


def test_routes_and_msrs_round_trip() -> None:
    table = IrqRouting([IrqRoute.hv_sint(1, 2, 3), IrqRoute.xen_evtchn(4, 5, 6), IrqRoute.msi(7, 1 << 33, 9, 10)])
    assert IrqRouting.from_bytes(bytes(table)) == table
    assert "msi" in repr(table)
    for broken in (b"", b"\xff" * 8, bytes(IrqRouting([IrqRoute.irqchip(0, 0, 0)]))[:-1]):
        with pytest.raises(StateError):
            IrqRouting.from_bytes(broken)
    msrs = Msrs({1: 2, 3: 4})
    msrs.retain(lambda index, value: index == 3)
    assert Msrs.from_bytes(bytes(msrs)) == {3: 4}
    assert repr(msrs) == "Msrs({0x3: 0x4})"
    for broken in (b"", b"\x02" + bytes(7)):
        with pytest.raises(StateError):
            Msrs.from_bytes(broken)


def test_sequences_filter_compare_and_save() -> None:
    for made, kind in (
        (MsrList([0x10, 0x174, 0xC0000080]), MsrList),
        (RegList([1 << 60, 2 << 60]), RegList),
        (IrqRouting.legacy(), IrqRouting),
        (Msrs({0x10: 1, 0x174: 2}), Msrs),
        (CpuId([CpuIdEntry(0, eax=1), CpuIdEntry(1, ecx=5)]), CpuId),
        (Xsave2(bytes(range(200))), Xsave2),
        (NestedState.new(NestedState.SVM, 4224), NestedState),
    ):
        again = kind.from_bytes(bytes(made))
        assert again == made
        assert type(again) is kind
        assert kind.__name__ in repr(made) or isinstance(made, (IrqRouting, CpuId))
    numbers = MsrList([1, 2, 3])
    numbers.retain(lambda index: index != 2)
    registers = RegList([1, 2, 3])
    registers.retain(lambda register: register > 1)
    routes = IrqRouting.legacy()
    routes.retain(lambda route: route.gsi == 4)
    assert (numbers, registers, len(routes)) == ([1, 3], [2, 3], 2)
    for kind in (MsrList, RegList, NestedState):
        for broken in (b"", b"\xff" * 7, b"\x05\0\0\0\0\0\0\0\1"):
            with pytest.raises(StateError):
                kind.from_bytes(broken)
    with pytest.raises(StateError, match="announce"):
        NestedState.from_bytes(b"\0\0\1\0\xff\xff\0\0".ljust(128, b"\0"))


def test_extended_state_has_names() -> None:
    area = Xsave2(bytes(5000))
    area.mxcsr, area.xstate_bv = 0x1FA0, 0b111
    area.xmm(3)[:] = bytes(range(16))
    assert area[160 + 48 : 160 + 64] == bytes(range(16))
    assert area.components() == ["x87", "sse", "avx"]
    assert (area.mxcsr, area.xcomp_bv, len(area.extended())) == (0x1FA0, 0, 5000 - 576)
    assert "x87 sse avx" in repr(area)
    assert "initial state" in repr(Xsave2())
    with pytest.raises(IndexError):
        area.xmm(16)
    state = NestedState.new(NestedState.SVM, 4224)
    state.flags = NestedState.GUEST_MODE
    state[8:16] = (0x5000).to_bytes(8, "little")
    assert (state.vmcs_or_vmcb, len(state.blocks())) == (0x5000, 4096)
    assert "SVM 4224 bytes" in repr(state)
    vmx = NestedState.new(NestedState.VMX)
    vmx[16:24] = (0x6000).to_bytes(8, "little")
    assert vmx.vmcs_or_vmcb == 0x6000


def test_templates_are_data() -> None:
    everything = CpuId([CpuIdEntry(0, eax=0x1F), CpuIdEntry(1, eax=0xA20F12), CpuIdEntry(2), CpuIdEntry(4, 0, 1)])
    everything += [CpuIdEntry(7, 0, 1), CpuIdEntry(0x80000000, ebx=1), CpuIdEntry(0x80000001), CpuIdEntry(0x8000001E)]
    host = CpuidPolicy(everything).with_(*FEATURES).table()
    for name, template in TEMPLATES.items():
        table = CpuidPolicy(host).template(name).table()
        assert set(CpuidPolicy(table).features()) == template.features
        assert "features" in repr(template)
        if template.vendor:
            vendor = table.leaf(0)
            raw = b"".join(value.to_bytes(4, "little") for value in (vendor.ebx, vendor.edx, vendor.ecx))
            assert raw.decode() == template.vendor
            assert table.leaf(1).eax == template.signature
            assert (0x8000001E in table.functions()) == (template.vendor == "AuthenticAMD")
            assert (4 in table.functions()) == (template.vendor == "GenuineIntel")
        else:
            assert table.leaf(1).eax == 0xA20F12
    own = Template(["fpu", "tsc"], "GenuineIntel", 0x12345)
    assert CpuidPolicy(host).template(own).features() == ["fpu", "tsc"]
    with pytest.raises(ValueError, match="x86-64-v1, x86-64-v2"):
        CpuidPolicy(host).template("alpha")


@kvm_only
def test_the_minimal_policy_is_what_the_guest_sees(kvm: Kvm, boot: Callable[..., Guest]) -> None:
    minimal = CpuidPolicy.minimal(kvm)
    assert set(minimal.features()) <= TEMPLATES["x86-64-v1"].features
    assert set(minimal.features()) <= set(CpuidPolicy.host(kvm).features())
    vcpu = boot("f4").vcpu
    vcpu.set_cpuid2(minimal.table(0))
    seen = CpuidPolicy(vcpu.get_cpuid2()).features()
    assert set(minimal.features()) <= set(seen)
    if not os.path.exists("/sys/module/kvm_pvm"):
        # KVM-PVM cannot hide leaves 1 ECX, 7 and 0xd
        assert seen == minimal.features()
