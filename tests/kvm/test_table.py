"""Every ioctl and exit of linux/kvm.h is wrapped, or the table in the documentation says why not."""

from __future__ import annotations

import errno
import os
import re
import subprocess
from pathlib import Path

import pytest

import pyvmm_kvm
import pyvmm_kvm.aarch64.system
import pyvmm_kvm.one_reg
import pyvmm_kvm.system
import pyvmm_kvm.x86_64.cpuid_policy
from pyvmm_kvm import Kvm, VcpuFd, VmFd
from pyvmm_kvm._kvm import ffi, lib
from pyvmm_kvm.cap import Cap
from pyvmm_kvm.exits.base import Live
from pyvmm_kvm.exits.rare import BY_REASON

from .guests import MACHINE

HEADER = Path("/usr/include/linux/kvm.h")
SOURCE = Path(pyvmm_kvm.__file__).parent
TABLE = Path(__file__).parents[2] / "docs" / "kvm-ioctls.md"
EXITS = TABLE.with_name("kvm-exits.md")

pytestmark = [
    pytest.mark.skipif(MACHINE != "x86_64", reason="the tables in the documentation are x86's"),
    pytest.mark.skipif(not HEADER.exists(), reason="linux/kvm.h is not installed"),
]

# the public method of what a helper of its own does
SPELT = {
    "_irqfd": "register_irqfd",
    "_ioeventfd": "register_ioevent",
    "_register": "set_user_memory_region",
    "read_msrs": "get_msrs",
    "set_tsc_offset": "set_device_attr",
}
# whose methods those of a base class are, for the table
BASES = {
    "ArchKvm": "Kvm",
    "ArchVm": "VmFd",
    "ArchVcpu": "VcpuFd",
    "Extensions": "VmFd",
    "ReadableAttrs": "VcpuFd",
    "DeviceAttrs": "VcpuFd",
}
OTHER = re.compile(r"KVM_(S390|PPC|ARM|CREATE_SPAPR|ALLOCATE_RMA)|KVM_DIRTY_TLB")
LEFT_OUT = {
    "KVM_TRACE_ENABLE": "removed from the kernel",
    "KVM_TRACE_PAUSE": "removed from the kernel",
    "KVM_TRACE_DISABLE": "removed from the kernel",
    "KVM_SET_MEMORY_REGION": "removed from the kernel",
    "KVM_SET_MEMORY_ALIAS": "removed from the kernel",
    "KVM_ASSIGN_PCI_DEVICE": "removed from the kernel; use VFIO",
    "KVM_ASSIGN_IRQ": "removed from the kernel; use VFIO",
    "KVM_ASSIGN_DEV_IRQ": "removed from the kernel; use VFIO",
    "KVM_DEASSIGN_PCI_DEVICE": "removed from the kernel; use VFIO",
    "KVM_ASSIGN_SET_MSIX_NR": "removed from the kernel; use VFIO",
    "KVM_ASSIGN_SET_MSIX_ENTRY": "removed from the kernel; use VFIO",
    "KVM_DEASSIGN_DEV_IRQ": "removed from the kernel; use VFIO",
    "KVM_ASSIGN_SET_INTX_MASK": "removed from the kernel; use VFIO",
    "KVM_DEBUG_GUEST": "removed from the kernel; use set_guest_debug",
    "KVM_GET_NR_MMU_PAGES": "removed in Linux 6.x",
    "KVM_CREATE_PIT": "superseded: create_pit2",
    "KVM_GET_PIT": "superseded: get_pit2",
    "KVM_SET_PIT": "superseded: set_pit2",
    "KVM_SET_CPUID": "superseded: set_cpuid2",
}


def defined(pattern: str) -> dict[str, str]:
    return dict(re.findall(rf"^#define\s+({pattern})\s+(.+)$", HEADER.read_text().replace("\\\n", " "), re.M))


def wrapped() -> dict[str, str]:
    """The public method through which each ioctl's name reaches the kernel, x86 before others."""
    found: dict[str, str] = {}
    paths = (path for path in SOURCE.rglob("*.py") if path.parent.name in ("pyvmm_kvm", "x86_64"))
    for path in sorted(path for path in paths if path.name != "_causes.py"):
        owner = method = ""
        for line in path.read_text().splitlines():
            if match := re.match(r"class (\w+)", line):
                owner = BASES.get(match[1], match[1])
            if match := re.match(r"(    )?def (\w+)", line):
                method = SPELT.get(match[2], match[2])
                if not match[1]:
                    owner = next((kind.__name__ for kind in (VcpuFd, VmFd, Kvm) if hasattr(kind, method)), "")
            for name in re.findall(r'"(KVM_[A-Z0-9_]+)"', line):
                if owner and (not method.startswith("_") or name not in found):
                    found[name] = f"{owner}.{method}"
    found["KVM_RUN"] = "VcpuFd.run"
    return found


def test_nearly_every_x86_ioctl_is_wrapped_and_the_table_says_so() -> None:
    ioctls = [name for name, text in defined(r"KVM_\w+").items() if re.match(r"_IO[WR]*\(|__KVM_DEPRECATED", text)]
    here = [name for name in ioctls if not OTHER.match(name)]
    ours = wrapped()
    rows = ["# Every ioctl of x86 in linux/kvm.h", "", "Checked against the header by `tests/kvm/test_table.py`.", ""]
    rows += ["| ioctl | pyvmm_kvm |", "| --- | --- |"]
    missing = []
    for name in sorted(here):
        if name in ours:
            rows.append(f"| {name} | `{ours[name]}` |")
        else:
            missing.append(name)
            rows.append(f"| {name} | left out: {LEFT_OUT.get(name) or 'no reason'} |")
    if "PYVMM_WRITE_TABLE" in os.environ:
        TABLE.write_text("\n".join(rows) + "\n")
    assert [name for name in missing if name not in LEFT_OUT] == []
    for name in here:
        if name in ours:
            owner, method = ours[name].split(".")
            assert callable(getattr(getattr(pyvmm_kvm, owner), method)), ours[name]
            assert not method.startswith("_"), ours[name]
    alive = [name for name in here if "removed" not in LEFT_OUT.get(name, "")]
    assert len([name for name in alive if name in ours]) >= 0.95 * len(alive)
    assert TABLE.read_text() == "\n".join(rows) + "\n", "out of date: PYVMM_WRITE_TABLE=1 pytest writes it again"


def test_the_numbers_that_a_boot_asks_for_are_those_of_the_enumeration() -> None:
    for module in (pyvmm_kvm.system, pyvmm_kvm.aarch64.system, pyvmm_kvm.x86_64.cpuid_policy):
        kept = {name: number for name, number in vars(module).items() if name.startswith("_CAP_")}
        assert kept == {name: Cap[name.removeprefix("_CAP_")] for name in kept} != {}


SIMPLE = {
    0: "Unknown",
    2: "IoOut, IoIn, StringOut, StringIn",
    4: "Debug, ArmDebug, RiscvDebug",
    5: "Hlt",
    6: "MmioRead, MmioWrite",
    8: "Shutdown",
    10: "Intr",
}
# numbers of a kind of their own, not reasons of an exit
NOT_REASONS = re.compile(r"KVM_EXIT_(IO_(IN|OUT)|HYPERV_\w+|XEN_HCALL)$")


def test_every_exit_of_the_header_has_a_class_and_the_table_says_so() -> None:
    reasons = {}
    for name, text in defined(r"KVM_EXIT_[A-Z0-9_]+").items():
        if text.split()[0].isdigit() and not NOT_REASONS.match(name):
            reasons[int(text.split()[0])] = name
    # what came after Debian's header; test_exits.py decodes each
    later = {38: "LOONGARCH_IOCSR", 39: "MEMORY_FAULT", 40: "TDX", 41: "ARM_SEA"}
    reasons |= {number: f"KVM_EXIT_{name}" for number, name in later.items()}
    assert set(reasons) == set(range(42))
    rows = ["# Every exit reason of linux/kvm.h", "", "Checked against the header by `tests/kvm/test_table.py`.", ""]
    rows += ["| number | reason | pyvmm_kvm | fields |", "| --- | --- | --- | --- |"]
    for number, name in sorted(reasons.items()):
        names = SIMPLE[number] if number in SIMPLE else BY_REASON[number].__name__
        kinds = [getattr(pyvmm_kvm, part) for part in names.split(", ")]
        live = [key for key, value in vars(kinds[0]).items() if isinstance(value, Live)]
        fields = list(kinds[0].__match_args__) + [
            f"{key} (to answer)" for key in live if key not in kinds[0].__match_args__
        ]
        rows.append(f"| {number} | {name} | `{names.replace(', ', '`, `')}` | {', '.join(fields) or '-'} |")
    if "PYVMM_WRITE_TABLE" in os.environ:
        EXITS.write_text("\n".join(rows) + "\n")
    assert EXITS.read_text() == "\n".join(rows) + "\n", "out of date: PYVMM_WRITE_TABLE=1 pytest writes it again"


@pytest.mark.kvm
def test_what_is_left_out_as_removed_is_gone_from_the_kernel(kvm: Kvm, tmp_path: Path) -> None:
    text = HEADER.read_text().replace("\\\n", " ")
    gone = []
    for name in (name for name, reason in LEFT_OUT.items() if "removed" in reason):
        number = re.search(rf"^#define\s+{name}\s+_IO\w*\(KVMIO,\s*0x\w+(?:,\s*struct (\w+))?\)", text, re.M)
        # a number whose structure the header has dropped, or that it calls deprecated, cannot even be written down
        if number and (number[1] is None or f"struct {number[1]} {{" in text):
            gone.append(name)
    assert {"KVM_GET_NR_MMU_PAGES", "KVM_ASSIGN_PCI_DEVICE", "KVM_ASSIGN_DEV_IRQ"} <= set(gone)
    program = tmp_path / "numbers.c"
    lines = "".join(f'printf("%lu\\n", (unsigned long){name});' for name in gone)
    program.write_text(f"#include <stdio.h>\n#include <linux/kvm.h>\nint main(void) {{ {lines} return 0; }}\n")
    subprocess.run(["cc", "-o", str(tmp_path / "numbers"), str(program)], check=True)
    numbers = subprocess.run([str(tmp_path / "numbers")], check=True, capture_output=True, text=True).stdout.split()
    with kvm.create_vm() as vm, vm.create_vcpu(0) as vcpu, ffi.from_buffer("char[]", bytearray(4096)) as argument:
        for name, request in zip(gone, numbers, strict=True):
            answers = {lib.pyvmm_ioctl(fd.fileno(), int(request), argument) for fd in (kvm, vm, vcpu)}
            assert answers <= {-errno.ENOTTY, -errno.EINVAL}, name


def test_capabilities_have_the_headers_numbers() -> None:
    for name, text in defined(r"KVM_CAP_\w+").items():
        assert Cap[name.removeprefix("KVM_CAP_")] == int(text.split()[0]), name


FIELDS = {
    1: "ex.error_code 4", 3: "hypercall.ret 56", 4: "debug.arch.dr7 24", 9: "fail_entry.cpu 8",
    12: "tpr_access.is_write 8", 13: "s390_sieic.ipb 4", 15: "dcr.is_write 8", 17: "internal.data 8",
    19: "papr_hcall.args 16", 20: "s390_ucontrol.pgm_code 8", 22: "s390_tsch.dequeued 16", 24: "system_event.data 8",
    25: "s390_stsi.sel2 12", 26: "eoi.vector 0", 27: "hyperv.u.syndbg.pending_page 48", 28: "arm_nisv.fault_ipa 8",
    29: "msr.data 16", 34: "xen.u.hcall.params 32", 35: "riscv_sbi.ret 64", 36: "riscv_csr.ret_value 24",
    37: "notify.flags 0",
}  # fmt: skip


def test_payload_offsets_are_the_compilers(tmp_path: Path) -> None:
    lines = ["#include <stddef.h>", "#include <linux/kvm.h>"]
    for text in FIELDS.values():
        field, offset = text.split()
        lines.append(
            f'_Static_assert(offsetof(struct kvm_run, {field}) - offsetof(struct kvm_run, hw) == {offset}, "");'
        )
    program = tmp_path / "offsets.c"
    program.write_text("\n".join(lines))
    subprocess.run(["cc", "-fsyntax-only", str(program)], check=True)


def test_the_table_of_names_names_what_is_there() -> None:
    text = (TABLE.parent / "kvm-names.md").read_text()
    cells = [line.split("|")[2] for line in text.splitlines() if line.startswith("| `")]
    assert len(cells) > 15
    named = 0
    for cell in cells:
        for name in re.findall(r"`((?:[A-Z]\w+|one_reg)(?:\.\w+)?)`", cell):
            target: object = pyvmm_kvm.one_reg if name.startswith("one_reg") else pyvmm_kvm
            for part in name.removeprefix("one_reg.").split("."):
                target = getattr(target, part)
            named += 1
    assert named > 15
