"""A wrong value is refused where it is given: KVM takes no lengths, so whatever is shorter than it reads is none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from tests.hostile.test_api import kinds_of, named
from tests.kvm.guests import MACHINE, PROGRAMS, Guest

import pyvmm_memory
from pyvmm_kvm import Cap, IoEventAddress, IrqRoute, IrqRouting, Kvm, KvmError, RunControl, StateError
from pyvmm_kvm.struct import Array, Struct
from pyvmm_virtio.errors import VirtioUsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

x86_64 = pytest.mark.skipif(MACHINE != "x86_64", reason="x86's structures")
STRUCTS = [kind for kind in kinds_of(Struct) if kind.field_names]


@pytest.mark.parametrize("kind", STRUCTS, ids=named)
def test_structures_refuse_what_does_not_fit(kind: type[Struct]) -> None:
    made: Any = kind()
    for name in kind.field_names:
        value = getattr(made, name)
        before = bytes(made)
        wrong: list[object] = [None, "1", object(), 1.0]
        if isinstance(value, int):
            wrong += [-(1 << 64), 1 << 64, b"1"]
        elif isinstance(value, Array):
            wrong += [[], [0] * (len(value) - 1), [0] * (len(value) + 1), [1 << 64] * len(value), 5]
        elif isinstance(value, memoryview):
            wrong += [b"", bytes(len(value) + 1), len(value)]
        else:
            wrong += [5, SimpleNamespace(**{value.field_names[0]: 1}) if len(value.field_names) > 1 else 5, made]
        for each in wrong:
            with pytest.raises((TypeError, ValueError, OverflowError)):
                setattr(made, name, each)
            assert bytes(made) == before, "what is refused changes nothing"
    with pytest.raises(ValueError, match="bytes"):
        kind.over(bytearray(kind.size() - 1))


@pytest.fixture
def machine() -> Iterator[Any]:
    with Kvm() as kvm:
        guest = Guest(kvm, PROGRAMS["loop"])
        yield SimpleNamespace(kvm=kvm, vm=guest.vm, vcpu=guest.vcpu)
        guest.close()


@pytest.mark.kvm
def test_the_kernel_is_given_nothing_shorter_than_it_reads(machine: Any) -> None:  # noqa: ANN401 - made above
    wrong: Any
    for wrong in (5, 8, b"", b"\1\0\0\0\0\0\0\0", [], None):
        with pytest.raises(TypeError):
            machine.vm.set_gsi_routing(wrong)
    with pytest.raises(KvmError, match="bitmap"):
        # one word of 64 bits is read for it
        machine.vm.clear_dirty_log(next(iter(machine.vm.memory_slots)), 0, 1, b"\1")
    for size in (0, 8, 5000, -4096):
        with pytest.raises(ValueError, match="power of two"):
            machine.vcpu.dirty_ring(size)


@x86_64
@pytest.mark.kvm
def test_the_kernel_is_given_the_structure_that_it_reads(machine: Any) -> None:  # noqa: ANN401 - made above
    vcpu = machine.vcpu
    wrong: Any
    for wrong in (5, 8, b"", b"\xff\0\0\0\0\0\0\0", [], None):
        with pytest.raises(TypeError):
            vcpu.set_cpuid2(wrong)
    with machine.kvm.create_vm() as vm:
        vm.create_irq_chip()
        vm.create_pit2()
        for call in (vm.set_pit2, vm.set_irqchip, vm.set_clock, vcpu.set_regs, vcpu.set_sregs, vcpu.set_vcpu_events):
            for wrong in (5, None, SimpleNamespace(flags=1), vcpu.get_fpu()):
                with pytest.raises(TypeError):
                    call(wrong)
        with pytest.raises(TypeError):
            vm.set_pit2(vm.get_clock())
        chip = vm.get_irqchip(0)
        for wrong in (16, bytes(16), chip.ioapic, None):
            with pytest.raises(TypeError):
                chip.pic = wrong
    with pytest.raises(TypeError, match="no Regs: it has no rax"):
        vcpu.set_regs(SimpleNamespace(rip=5))


@x86_64
@pytest.mark.kvm
def test_the_kernel_writes_no_further_than_there_is_room(machine: Any) -> None:  # noqa: ANN401 - made above
    vcpu = machine.vcpu
    if machine.kvm.check_extension(Cap.VCPU_ATTRIBUTES):
        with pytest.raises(StateError, match="more than 1 bytes"):
            vcpu.get_device_attr(0, 0, 1)
        with pytest.raises(ValueError, match="at least one byte"):
            vcpu.set_device_attr(0, 0, b"")
        for wrong in (1 << 64, -(1 << 63) - 1):
            with pytest.raises(ValueError, match="64 bits"):
                vcpu.set_tsc_offset(wrong)
    assert len(vcpu.get_xsave2(0)) == 4096
    vcpu.set_sync_valid_reg(3, 1)
    vcpu.clear_sync_valid_reg(1, 2)


@x86_64
def test_numbers_of_the_tables() -> None:
    from pyvmm_kvm import CpuId, CpuIdEntry, MsrFilterRange

    for wrong in (-1, 1 << 32, 1.0, "1", None):
        with pytest.raises(ValueError, match="32 bits"):
            CpuIdEntry(1, eax=wrong)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="32 bits"):
            CpuIdEntry(1).ebx = wrong  # type: ignore[assignment]
    table = CpuId([CpuIdEntry(1, ecx=0xFF)])
    assert table.set(1, ecx=~1).ecx == 0xFFFFFFFE
    with pytest.raises(ValueError, match="32 bits"):
        table.set(1, ecx=1 << 32)
    with pytest.raises(ValueError, match="none of the 4"):
        MsrFilterRange.denying(0x174, [0x178], 4)
    for base in (-1, 1 << 32):
        with pytest.raises(ValueError, match="32 bits"):
            MsrFilterRange(1, base, 1, b"\1")


@pytest.mark.kvm
def test_interrupts_and_events_that_could_never_be(machine: Any) -> None:  # noqa: ANN401 - made above
    with pytest.raises(ValueError, match="16 bits"):
        IoEventAddress.Pio(1 << 16)
    for wrong in (-1, 1 << 64):
        with pytest.raises(ValueError, match="64 bits"):
            IoEventAddress.Mmio(wrong)
    for match in (1 << 32, -1, (256, 1)):
        with pytest.raises(ValueError, match="to match"):
            machine.vm.register_ioevent(0, IoEventAddress.Mmio(4096), match)
    with pytest.raises(TypeError, match="neither"):
        machine.vm.register_ioevent(0, SimpleNamespace(address=5))
    with pytest.raises(ValueError, match="4"):
        IrqRoute(1, 1, (0,))  # type: ignore[arg-type]
    assert IrqRouting.from_bytes(bytes(IrqRouting())) == []


@pytest.mark.kvm
def test_controls_of_what_they_do_not_have(machine: Any) -> None:  # noqa: ANN401 - made above
    control = RunControl([machine.vcpu], lambda *_: True)
    with pytest.raises(ValueError, match="none of the vCPUs"):
        control.kick(5)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="before join"):
        control.join()
    with pytest.raises(TypeError, match="on_end"):
        RunControl([machine.vcpu], lambda *_: True, on_end=5)  # type: ignore[arg-type]
    machine.vcpu.close()
    with pytest.raises(ValueError, match="closed"):
        RunControl([machine.vcpu], lambda *_: True)


# guest memory and virtio


def test_numbers_that_are_none() -> None:
    from pyvmm_virtio.rate_limiter import RateLimiter, TokenBucket

    for wrong in (1.0, "1", None):
        with pytest.raises(pyvmm_memory.GuestMemoryError):
            pyvmm_memory.Le32(wrong)  # type: ignore[arg-type]
        with pytest.raises((TypeError, ValueError)):
            TokenBucket(wrong)  # type: ignore[arg-type]
        with pytest.raises((TypeError, ValueError)):
            TokenBucket(1, wrong)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no TokenBucket"):
        RateLimiter(5)  # type: ignore[arg-type]
    iotlb = pyvmm_memory.Iommu().iotlb
    for permissions in (4, 7, -1, "rw"):
        with pytest.raises(ValueError, match="no permissions"):
            iotlb.set_mapping(0, 0, 4096, permissions)  # type: ignore[arg-type]


def test_a_region_stays_where_it_is() -> None:
    with pyvmm_memory.GuestMemoryMmap.from_ranges([(0, 0x2000)]) as memory:
        (region,) = memory
        for name in ("start", "size", "end"):
            with pytest.raises(AttributeError, match="stays where it is"):
                setattr(region, name, 0x1000)
        assert (region.start, region.size, region.end) == (0, 0x2000, 0x2000)


def test_a_configuration_space_does_not_grow() -> None:
    from pyvmm_virtio.backends.memory import MemoryDisk
    from pyvmm_virtio.devices import Block

    disk = MemoryDisk(4096)
    device = Block(disk)
    before = bytes(device.config)
    for offset in (-1, len(before)):
        with pytest.raises(VirtioUsageError):
            device.update_config(offset, b"12")
    assert device.config == before
    for wrong in (-512, 8192):
        with pytest.raises(OSError, match="not within"):
            disk.write_zeroes(0, wrong, unmap=False)
    device.close()


# plans


def test_a_plan_is_given_nothing_that_it_would_not_look_at() -> None:
    from pyvmm_loader import BootPlan, ProtocolViolation

    with BootPlan(b"\xf4" * 512, 1 << 20, entry="flat16", load_address=0x8000) as plan:
        assert plan.start == 0x8000
    for more in ({"dtb": b"tree"}, {"variables": b"store"}):
        with pytest.raises(ProtocolViolation, match="omit it"):
            BootPlan(b"\xf4" * 512, 1 << 20, entry="flat16", **more)  # type: ignore[arg-type]
    for line in (5, None, b"quiet"):
        with pytest.raises(TypeError, match="no command line"):
            BootPlan(b"\xf4" * 512, 1 << 20, line, entry="flat16")  # type: ignore[arg-type]
