"""The calls that every VMM makes on any architecture: system, VM, slots, descriptors, errors and their causes."""

from __future__ import annotations

import errno
import gc
import mmap
import os
import pickle
import subprocess
import sys
import weakref
from typing import TYPE_CHECKING

import pytest

import pyvmm_kvm
from pyvmm_kvm import Cap, ClosedError, IoEventAddress, Kvm, KvmError, MsrError, VcpuFd, VmFd, crash_report

from .checks import code_of
from .guests import ARCHITECTURES, MACHINE

if TYPE_CHECKING:
    from collections.abc import Callable

kvm_only = pytest.mark.kvm


@kvm_only
def test_the_system_describes_itself(kvm: Kvm) -> None:
    assert kvm.get_api_version() == 12
    assert kvm.check_extension(Cap.USER_MEMORY)
    assert not kvm.check_extension(99999)
    assert 0 < kvm.get_nr_vcpus() <= kvm.get_max_vcpus() <= kvm.get_max_vcpu_id()
    assert kvm.get_nr_memslots() >= 32
    assert kvm.get_vcpu_mmap_size() >= mmap.PAGESIZE
    with kvm.create_vm() as vm, kvm.create_vmfd_from_rawfd(os.dup(vm.fileno())) as again:
        assert again.check_extension(Cap.USER_MEMORY)
        assert again.run_size() == vm.run_size()


@kvm_only
def test_every_capability_has_an_answer(kvm: Kvm) -> None:
    """KVM says EINVAL of some that only a VM has, which means no."""
    with kvm.create_vm() as vm:
        for cap in Cap:
            assert kvm.check_extension_raw(cap) >= 0
            assert vm.check_extension_raw(cap) >= 0
        assert kvm.check_extension_raw(4711) == 0
        assert kvm.check_extension_int(Cap.NR_MEMSLOTS) == vm.check_extension_int(Cap.NR_MEMSLOTS)
    with pytest.raises(ClosedError, match="VmFd is closed"):
        vm.check_extension(0)


@kvm_only
def test_what_has_no_attributes_has_none(kvm: Kvm) -> None:
    assert not kvm.has_device_attr(0, 77)
    with kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu:
        assert not vm.has_device_attr(99, 0)
        assert not vcpu.has_device_attr(99, 0)
        assert code_of(lambda: vcpu.get_device_attr(99, 0)) in (errno.ENXIO, errno.EINVAL, errno.ENOTTY)
    with pytest.raises(ClosedError):
        vm.has_device_attr(0, 0)


@kvm_only
def test_doctor_in_process(capsys: pytest.CaptureFixture[str]) -> None:
    from pyvmm_kvm.__main__ import main

    assert main([]) == 0
    assert "USER_MEMORY" in capsys.readouterr().out
    assert main(["--json"]) == 0


@kvm_only
def test_a_slot_is_deleted_and_read_only_ones_take_bytes(kvm: Kvm) -> None:
    memory = mmap.mmap(-1, 4096)
    with kvm.create_vm() as vm:
        slot = vm.set_user_memory_region(0, 0, memory)
        assert "[0x0, 0x1000)" in repr(slot)
        assert vm.set_user_memory_region(0, 0, None) is None
        memory.close()
        with pytest.raises(KvmError, match="multiples of the page size"):
            vm.set_user_memory_region(0, 0, bytearray(100))
        with pytest.raises(KvmError):
            vm.set_user_memory_region(0, 0, b"ro", pyvmm_kvm.MEM_READONLY)
        with pytest.raises((BufferError, TypeError)):
            vm.set_user_memory_region(0, 0, b"ro")

        class Region:
            def __init__(self) -> None:
                self.memory = mmap.mmap(-1, 4096)

            def __buffer__(self, flags: int) -> memoryview:
                return memoryview(self.memory)

        # classes lend their memory from Python 3.12 on, as those in C always could
        region = Region()
        lent = region if sys.version_info >= (3, 12) else region.memory
        assert vm.set_user_memory_region(1, 0x1000, lent) is not None
    region.memory.close()


@kvm_only
def test_slots_refuse_what_the_kernel_cannot_map(kvm: Kvm) -> None:
    with kvm.create_vm() as vm, mmap.mmap(-1, 0x2000) as memory:
        assert code_of(lambda: vm.set_user_memory_region(0, 0x100, memory)) == errno.EINVAL
        assert code_of(lambda: vm.set_user_memory_region(0, 0, bytearray(100))) == errno.EINVAL
        vm.set_user_memory_region(0, 0, memory)
        assert code_of(lambda: vm.set_user_memory_region(1, 0x1000, memory)) == errno.EEXIST
        with mmap.mmap(-1, 0x1000) as smaller:
            assert code_of(lambda: vm.set_user_memory_region(0, 0, smaller)) == errno.EINVAL
        # an existing slot may move
        vm.set_user_memory_region(0, 0x10000, memory)
        assert vm.memory_slots[0].guest_phys_addr == 0x10000
        vm.set_user_memory_region(0, 0, b"")
        assert vm.memory_slots == {}


@kvm_only
def test_memory_is_referenced_by_the_vm_and_by_its_vcpus(kvm: Kvm) -> None:
    class Memory(mmap.mmap):
        pass

    memory = Memory(-1, 0x2000)
    alive = weakref.ref(memory)
    vm = kvm.create_vm()
    vm.set_user_memory_region(0, 0, memory)
    assert vm.memory_slots[0].memory is memory
    with pytest.raises(BufferError):
        memory.close()
    vcpu = vm.create_vcpu(0)
    del memory
    gc.collect()
    assert alive() is not None
    vm.close()
    assert alive() is not None, "the kernel's VM lives as long as a vCPU does"
    vcpu.close()
    gc.collect()
    assert alive() is None


@kvm_only
def test_forgotten_descriptors_warn(kvm: Kvm) -> None:
    vm = kvm.create_vm()
    with pytest.warns(ResourceWarning, match="unclosed <VmFd"):
        del vm


@kvm_only
def test_closed_systems_and_vms_refuse(kvm: Kvm) -> None:
    vm = kvm.create_vm()
    vm.close()
    calls: tuple[Callable[[], object], ...] = (
        vm.fileno,
        vm.create_irq_chip,
        lambda: vm.create_vcpu(0),
        lambda: vm.set_user_memory_region(0, 0, None),
        lambda: vm.check_extension(0),
    )
    for call in calls:
        with pytest.raises(ClosedError, match="VmFd is closed"):
            call()
    other = Kvm()
    other.close()
    with pytest.raises(ClosedError, match="Kvm is closed"):
        other.create_vm()
    assert VmFd(-1, 0).closed
    assert VcpuFd.__mro__[1].__module__.endswith(f"{MACHINE}.vcpu")


@kvm_only
def test_errors_name_the_ioctl_and_the_cause(kvm: Kvm) -> None:
    with kvm.create_vm() as vm, vm.create_vcpu(0):
        with pytest.raises(KvmError, match="KVM_CREATE_VCPU failed with EEXIST") as caught:
            vm.create_vcpu(0)
        assert caught.value.ioctl == "KVM_CREATE_VCPU"
        assert caught.value.cause == "a vCPU with this id exists"
        with pytest.raises(KvmError, match="max_vcpu_id"):
            vm.create_vcpu(kvm.get_max_vcpu_id())


@kvm_only
def test_a_missing_device_says_which_hosts_have_it(kvm: Kvm) -> None:
    with kvm.create_vm() as vm, pytest.raises(KvmError, match="this host's KVM has no device of that type"):
        vm.create_device(4711)


CAUSES = (
    ("x86_64", "KVM_CREATE_PIT2", errno.ENOENT, "call create_irq_chip first"),
    ("x86_64", "KVM_CREATE_IRQCHIP", errno.EINVAL, "before the first vCPU"),
    ("aarch64", "KVM_CREATE_VM", errno.EINVAL, "32 to get_host_ipa_limit() bits"),
    ("aarch64", "KVM_CREATE_IRQCHIP", errno.ENODEV, "make an aarch64.platform.VgicV3 instead"),
    ("aarch64", "KVM_CREATE_DEVICE", errno.ENODEV, "a GICv2 needs a host"),
    ("aarch64", "KVM_RUN", errno.ENOEXEC, "call vcpu_init first"),
    ("aarch64", "KVM_GET_ONE_REG", errno.ENOEXEC, "call vcpu_init first"),
    ("aarch64", "KVM_GET_REG_LIST", errno.EPERM, "call vcpu_finalize first"),
    ("aarch64", "KVM_RUN", errno.ENOSYS, "ARM_NISV_TO_USER"),
    ("riscv64", "KVM_CREATE_IRQCHIP", errno.EINVAL, "a PLIC of your own"),
    ("riscv64", "KVM_CREATE_DEVICE", errno.ENODEV, "Ssaia"),
    ("riscv64", "KVM_RUN", errno.EOPNOTSUPP, "fetched an instruction where it has no memory"),
    # what all have in common
    ("riscv64", "KVM_CREATE_VM", errno.EINVAL, "not one of this architecture"),
    ("s390x", "KVM_IRQFD", errno.EBUSY, "registered already"),
    ("s390x", "KVM_RUN", errno.ENOEXEC, ""),
)


@pytest.mark.parametrize(("machine", "ioctl", "number", "words"), CAUSES)
def test_causes_are_those_of_the_architecture(machine: str, ioctl: str, number: int, words: str) -> None:
    from pyvmm_kvm._causes import likely_cause

    cause = likely_cause(ioctl, number, machine)
    assert words in cause if words else cause == ""
    if machine == MACHINE:
        assert KvmError(number, ioctl).cause == cause


class Stopped:
    """A vCPU whose guest has ended."""

    id, exits, registers = 3, 7, "rip 000000000000fff0"

    def __init__(self, last: str, in_reset_state: bool) -> None:
        self.last_exits = ["IoOut(0x10, <41>)", last]
        self.in_reset_state = in_reset_state


def test_the_report_says_when_the_registers_are_not_the_guests() -> None:
    """KVM on AMD resets a vCPU at its triple fault; on Intel the registers are those that led to it."""
    lost = "what the guest had in them is lost"
    assert lost in crash_report(Stopped("Shutdown()", True))  # type: ignore[arg-type]
    assert lost not in crash_report(Stopped("Shutdown()", False))  # type: ignore[arg-type]
    assert lost not in crash_report(Stopped("Hlt()", True))  # type: ignore[arg-type]


def test_errors_travel_and_names_compare() -> None:
    for error in (KvmError(17, "KVM_CREATE_VCPU"), ClosedError("VmFd", "KVM_RUN"), MsrError("KVM_SET_MSRS", 5, 1)):
        copy = pickle.loads(pickle.dumps(error))
        assert str(copy) == str(error)
    assert IoEventAddress.Pio(1) == IoEventAddress.Pio(1) != IoEventAddress.Mmio(1)
    assert len({IoEventAddress.Pio(1), IoEventAddress.Pio(1)}) == 1
    assert repr(IoEventAddress.Mmio(16)) == "IoEventAddress.Mmio(0x10)"
    with pytest.raises(TypeError, match="say IoEventAddress"):
        IoEventAddress(1)
    assert Cap.name_of(0) == "IRQCHIP"


def test_every_public_name_is_there() -> None:
    with pytest.raises(AttributeError, match=r"no attribute 'nothing'$"):
        pyvmm_kvm.nothing  # noqa: B018 - asking is what is tested
    assert set(pyvmm_kvm.__all__) <= set(dir(pyvmm_kvm))
    for name in pyvmm_kvm.__all__:
        assert getattr(pyvmm_kvm, name) is not None


STAR = """
import os
real = os.uname()
os.uname = lambda: os.uname_result((*real[:4], {machine!r}))
before = set(globals())
from pyvmm_kvm import *
print(*sorted(set(globals()) - before))
import pyvmm_kvm
try:
    pyvmm_kvm.{missing}
except AttributeError as error:
    print(error)
"""


@pytest.mark.parametrize("machine", ARCHITECTURES)
def test_all_names_can_be_imported_at_once(machine: str) -> None:
    """As it would be there, with the machine's name changed before the import."""
    missing = "nothing" if machine == "x86_64" else "CpuidPolicy"
    script = STAR.format(machine=machine, missing=missing)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    names, error = done.stdout.splitlines()
    shared = {"Kvm", "VmFd", "VcpuFd", "RunControl", "GuestDebug", "VcpuState", "VmState", "Regs"}
    assert shared <= set(names.split())
    assert ("Sregs" in names.split()) == (machine == "x86_64")
    assert error.endswith("no attribute 'nothing'" if machine == "x86_64" else "it exists on x86_64 hosts only")


def test_importing_is_cheap() -> None:
    script = (
        "import sys; before = set(sys.modules); from pyvmm_kvm import Kvm, VmFd, VcpuFd, IoOut;"
        "print(*sorted(set(sys.modules) - before))"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    costly = {"dataclasses", "pathlib", "logging", "typing", "re", "argparse", "enum", "threading", "json", "inspect"}
    site = subprocess.run(
        [sys.executable, "-c", "import sys; print(*sys.modules)"], capture_output=True, text=True, check=True
    )
    assert not costly & set(result.stdout.split()) - set(site.stdout.split())
