"""`python -m pyvmm_kvm`: what this host's KVM offers, for people and, with --json, for bug reports."""

from __future__ import annotations

import json
import os
import platform
import sys

from pyvmm_kvm.errors import KvmError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    from pyvmm_kvm.system import Kvm

    Facts: TypeAlias = dict[str, object]


def kind_of_host() -> str:
    """Say how this host runs guests, as far as files tell without opening /dev/kvm."""
    if os.path.exists("/sys/module/kvm_pvm"):
        return "KVM-PVM: no hardware virtualization, guest kernels run in an emulator and are slow"
    for module, text in (("kvm_intel", "Intel VT-x"), ("kvm_amd", "AMD-V")):
        if os.path.exists(f"/sys/module/{module}"):
            return f"hardware: {text}"
    match platform.machine():
        case "aarch64":
            return kind_of_arm(content("/proc/interrupts"))
        case "riscv64":
            return kind_of_riscv(content("/proc/cpuinfo"))
        case _:
            return "unknown: no KVM module of x86 is loaded"


def content(path: str) -> str:
    """Return what a file of /proc says; nothing where it cannot be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""


def kind_of_arm(interrupts: str) -> str:
    """Say from /proc/interrupts how an arm64 kernel runs guests.

    A kernel that runs in EL2 itself (VHE) leaves the physical timer to guests and KVM takes its interrupt; one in EL1
    (nVHE) uses that timer, and KVM has the virtual one only.

    >>> kind_of_arm("11: 0 GICv3 27 Level kvm guest vtimer")
    'hardware: Arm EL2, nVHE'
    """
    if "kvm guest vtimer" not in interrupts:
        return "unknown: KVM did not start, as it does where the kernel is started in EL2"
    return f"hardware: Arm EL2, {'VHE' if 'kvm guest ptimer' in interrupts else 'nVHE'}"


def kind_of_riscv(cpuinfo: str) -> str:
    """Say from /proc/cpuinfo whether a RISC-V host's processors have the hypervisor extension.

    >>> kind_of_riscv("isa : rv64imafdch_zicntr")
    'hardware: RISC-V H extension'
    """
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        # the single letters come first, and h is none of the others' names
        if name.strip() == "isa" and "h" in value.strip().lower().partition("_")[0]:
            return "hardware: RISC-V H extension"
    return "unknown: no processor has the H extension"


def permissions(path: str) -> Facts:
    """Say who may open the device, and whether we may."""
    try:
        status = os.stat(path)
    except OSError as error:
        return {"exists": False, "problem": str(error)}
    return {
        "exists": True,
        "mode": f"{status.st_mode & 0o777:o}",
        "owner": status.st_uid,
        "group": status.st_gid,
        "our_user": os.geteuid(),
        "our_groups": sorted(os.getgroups()),
        "readable_and_writable": os.access(path, os.R_OK | os.W_OK),
    }


def offer(kvm: Kvm) -> Facts:
    """Return what an open device says about itself."""
    from pyvmm_kvm.cap import Cap

    facts: Facts = {
        "api_version": kvm.get_api_version(),
        "vcpus": {
            "recommended": kvm.get_nr_vcpus(),
            "most": kvm.get_max_vcpus(),
            "ids_below": kvm.get_max_vcpu_id(),
        },
        "memory_slots": kvm.get_nr_memslots(),
        "vcpu_mmap_size": kvm.get_vcpu_mmap_size(),
        "capabilities": {cap.name: value for cap in Cap if (value := kvm.check_extension_raw(cap)) > 0},
    }
    if platform.machine() == "x86_64":
        from pyvmm_kvm.x86_64.cpuid_policy import CpuidPolicy

        table = kvm.get_supported_cpuid()
        vendor = table.leaf(0)
        name = b"".join(value.to_bytes(4, "little") for value in (vendor.ebx, vendor.edx, vendor.ecx))
        facts["cpuid"] = {
            "entries": len(table),
            "vendor": name.decode("ascii", "replace"),
            "features": CpuidPolicy(table).features(),
        }
        facts["msrs"] = msrs(kvm)
    return facts


def msrs(kvm: Kvm) -> Facts:
    """Return how many model-specific registers a vCPU has here, and what those say that describe KVM's own features."""
    from pyvmm_kvm.errors import MsrError

    values: Facts = {}
    for index in kvm.get_msr_feature_index_list():
        try:
            values[f"{index:#x}"] = f"{kvm.get_msrs([index])[index]:#x}"
        except MsrError:
            values[f"{index:#x}"] = "cannot be read"
    return {"saved": len(kvm.get_msr_index_list()), "features": values}


def collect(path: str = "/dev/kvm") -> Facts:
    """Return all of it; `problem` says why the device did not open."""
    facts: Facts = {
        "machine": platform.machine(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "host": kind_of_host(),
        "device": path,
        "permissions": permissions(path),
    }
    from pyvmm_kvm.system import Kvm

    try:
        with Kvm(path) as kvm:
            facts["kvm"] = offer(kvm)
    except KvmError as error:
        facts["problem"] = str(error)
    return facts


def as_text(facts: Facts, indent: str = "") -> str:
    """Return the facts as indented lines."""
    lines = []
    for name, value in facts.items():
        label = f"{indent}{name.replace('_', ' ') if not name.isupper() else name}"
        if isinstance(value, dict):
            lines += [f"{label}:", as_text(value, indent + "  ")]
        elif isinstance(value, list):
            lines.append(f"{label}: {' '.join(map(str, value))}")
        else:
            lines.append(f"{label}: {value}")
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    """Print the facts; return 0 where KVM can be used and 1 where it cannot."""
    import argparse

    parser = argparse.ArgumentParser(prog="python -m pyvmm_kvm", description=__doc__)
    parser.add_argument("--json", action="store_true", help="for machines and bug reports")
    parser.add_argument("--device", default="/dev/kvm", help="another device file (default: %(default)s)")
    options = parser.parse_args(arguments)
    facts = collect(options.device)
    sys.stdout.write((json.dumps(facts, indent=2) if options.json else as_text(facts)) + "\n")
    return 1 if "problem" in facts else 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
