"""The structures and numbers of arm64 and RISC-V against those architectures' own kernel headers."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from guest.host import GuestError, install, installed

from pyvmm_kvm._kvm import lib
from pyvmm_kvm.aarch64 import platform as arm_platform
from pyvmm_kvm.aarch64 import registers as arm
from pyvmm_kvm.aarch64 import structs as arm_structs
from pyvmm_kvm.aarch64 import vcpu as arm_vcpu
from pyvmm_kvm.aarch64 import vm as arm_vm
from pyvmm_kvm.device import DeviceFd
from pyvmm_kvm.mp_state import MpState
from pyvmm_kvm.riscv64 import platform as riscv_platform
from pyvmm_kvm.riscv64 import registers as riscv
from pyvmm_kvm.riscv64 import structs as riscv_structs
from pyvmm_kvm.struct import Struct

if TYPE_CHECKING:
    from types import ModuleType

# of the checkout that these tests lie in, wherever the package was installed
BUILD = Path(__file__).parents[2] / "pyvmm_kvm" / "_build_kvm.py"
SOURCE = BUILD.parent / "src" / "pyvmm_kvm"
PACKAGES = {"aarch64": "linux-libc-dev-arm64-cross", "riscv64": "linux-libc-dev-riscv64-cross"}
CHECKED = {"aarch64": "arm64_vcpu_init", "riscv64": "riscv64_core"}

pytestmark = pytest.mark.skipif(not BUILD.exists(), reason="needs the sources, not an installed package")


def headers(arch: str, folder: Path) -> Path:
    """That architecture's kernel headers, installed where they can be, and nothing of a C library beside them."""
    if shutil.which("cc") is None:
        pytest.skip("there is no C compiler here")
    if not installed(PACKAGES[arch]):
        try:
            install([PACKAGES[arch]], f"kernel headers of {arch}")
        except (GuestError, OSError) as error:
            pytest.skip(f"{PACKAGES[arch]} cannot be installed here: {error}")
    alone = folder / f"include-{arch}"
    alone.mkdir(exist_ok=True)
    for name in ("asm", "asm-generic", "linux"):
        if not (alone / name).exists():
            (alone / name).symlink_to(f"/usr/{arch}-linux-gnu/include/{name}")
    return alone


def compiles(arch: str, text: str, folder: Path) -> str:
    """The compiler's complaint about a program that sees the headers of `arch`, or nothing."""
    program = folder / f"{arch}.c"
    program.write_text(text)
    command = ["cc", "-fsyntax-only", "-w", "-DPy_LIMITED_API=0x030b0000", "-isystem", str(headers(arch, folder))]
    command += ["-I", sysconfig.get_path("include"), str(program)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


@pytest.mark.parametrize("arch", PACKAGES)
def test_the_extension_module_compiles_for_the_architecture(arch: str, tmp_path: Path) -> None:
    """Its checks compare every structure with the kernel's, and cffi's compare every declaration."""
    pytest.importorskip("cffi", reason="cffi's compiler is not installed")
    generated = tmp_path / "module.c"
    runpy.run_path(str(BUILD))["declare"](arch).emit_c_code(str(generated))
    text = generated.read_text()
    assert compiles(arch, text, tmp_path) == ""
    # the same with one field too many must fail, or the checks would not look
    broken = re.sub(rf"(struct {CHECKED[arch]} \{{)", r"\1 __u64 intruder;", text, count=1)
    assert "static assertion failed" in compiles(arch, broken, tmp_path)


ARM = {
    "KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | KVM_REG_ARM_CORE_REG(regs.pc)": arm.core("pc"),
    "KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | KVM_REG_ARM_CORE_REG(regs.regs[30])": arm.core("regs", 30),
    "KVM_REG_ARM64 | KVM_REG_SIZE_U64 | KVM_REG_ARM_CORE | KVM_REG_ARM_CORE_REG(spsr[4])": arm.core("spsr", 4),
    "KVM_REG_ARM64 | KVM_REG_SIZE_U128 | KVM_REG_ARM_CORE | KVM_REG_ARM_CORE_REG(fp_regs.vregs[31])": arm.core(
        "vregs", 31
    ),
    "KVM_REG_ARM64 | KVM_REG_SIZE_U32 | KVM_REG_ARM_CORE | KVM_REG_ARM_CORE_REG(fp_regs.fpcr)": arm.core("fpcr"),
    "ARM64_SYS_REG(3, 0, 0, 0, 5)": arm.MPIDR_EL1,
    "KVM_REG_ARM_TIMER_CTL": arm.TIMER_CTL,
    "KVM_REG_ARM_TIMER_CVAL": arm.TIMER_CVAL,
    "KVM_REG_ARM_TIMER_CNT": arm.TIMER_CNT,
    "KVM_REG_ARM_PTIMER_CTL": arm.PTIMER_CTL,
    "KVM_REG_ARM_PTIMER_CVAL": arm.PTIMER_CVAL,
    "KVM_REG_ARM_PTIMER_CNT": arm.PTIMER_CNT,
    "KVM_REG_ARM_PSCI_VERSION": arm.PSCI_VERSION,
    "KVM_REG_ARM_SMCCC_ARCH_WORKAROUND_3": arm.SMCCC_ARCH_WORKAROUND_3,
    "KVM_REG_ARM_VENDOR_HYP_BMAP": arm.firmware_bitmap(2),
    "KVM_REG_ARM64_SVE_ZREG(7, 3)": arm.sve_z(7, 3),
    "KVM_REG_ARM64_SVE_PREG(5, 1)": arm.sve_p(5, 1),
    "KVM_REG_ARM64_SVE_FFR(2)": arm.sve_ffr(2),
    "KVM_REG_ARM64_SVE_VLS": arm.SVE_VLS,
    "KVM_REG_ARM64 | KVM_REG_SIZE_U32 | KVM_REG_ARM_DEMUX | KVM_REG_ARM_DEMUX_ID_CCSIDR | 3": arm.ccsidr(3),
    "KVM_ARM_VCPU_INIT": lib.KVM_ARM_VCPU_INIT,
    "KVM_ARM_PREFERRED_TARGET": lib.KVM_ARM_PREFERRED_TARGET,
    "KVM_ARM_VCPU_FINALIZE": lib.KVM_ARM_VCPU_FINALIZE,
    "KVM_ARM_MTE_COPY_TAGS": lib.KVM_ARM_MTE_COPY_TAGS,
    "KVM_ARM_SET_DEVICE_ADDR": lib.KVM_ARM_SET_DEVICE_ADDR,
    "KVM_ARM_VCPU_POWER_OFF": arm_structs.VcpuInit.POWER_OFF,
    "KVM_ARM_VCPU_SVE": arm_structs.VcpuInit.SVE,
    "KVM_ARM_VCPU_PTRAUTH_GENERIC": arm_structs.VcpuInit.PTRAUTH_GENERIC,
    "KVM_ARM_TARGET_GENERIC_V8": arm_structs.VcpuInit.GENERIC_V8,
    "KVM_DEV_TYPE_VFIO": DeviceFd.VFIO,
    "KVM_DEV_TYPE_ARM_VGIC_V2": DeviceFd.ARM_VGIC_V2,
    "KVM_DEV_TYPE_ARM_VGIC_V3": DeviceFd.ARM_VGIC_V3,
    "KVM_DEV_TYPE_ARM_VGIC_ITS": DeviceFd.ARM_VGIC_ITS,
    "KVM_DEV_ARM_VGIC_GRP_ADDR": arm_platform.GRP_ADDR,
    "KVM_DEV_ARM_VGIC_GRP_REDIST_REGS": arm_platform.GRP_REDIST_REGS,
    "KVM_DEV_ARM_VGIC_GRP_ITS_REGS": arm_platform.GRP_ITS_REGS,
    "KVM_VGIC_V3_ADDR_TYPE_REDIST_REGION": arm_platform.V3_ADDR_REDIST_REGION,
    "KVM_VGIC_ITS_ADDR_TYPE": arm_platform.ITS_ADDR,
    "KVM_DEV_ARM_VGIC_SAVE_PENDING_TABLES": arm_platform.SAVE_PENDING_TABLES,
    "KVM_DEV_ARM_ITS_CTRL_RESET": arm_platform.ITS_CTRL_RESET,
    "KVM_ARM_VCPU_PMU_V3_SET_PMU": arm_vcpu.PMU_V3_SET_PMU,
    "KVM_ARM_VCPU_TIMER_CTRL": arm_vcpu.TIMER_CTRL,
    "KVM_ARM_VCPU_PVTIME_CTRL": arm_vcpu.PVTIME_CTRL,
    "KVM_ARM_TAGS_FROM_GUEST": arm_vm.TAGS_FROM_GUEST,
    "KVM_ARM_IRQ_TYPE_PPI": arm_vm.IRQ_TYPE_PPI,
    "(1UL << KVM_ARM_IRQ_VCPU2_SHIFT) | (2 << KVM_ARM_IRQ_TYPE_SHIFT) | (44 << KVM_ARM_IRQ_VCPU_SHIFT) | 27": (
        arm_vm.irq_number(arm_vm.IRQ_TYPE_PPI, 27, vcpu=300)
    ),
}
RISCV = {
    "KVM_REG_RISCV | KVM_REG_SIZE_U64 | KVM_REG_RISCV_CONFIG | KVM_REG_RISCV_CONFIG_REG(isa)": riscv.config("isa"),
    "KVM_REG_RISCV | KVM_REG_SIZE_U64 | KVM_REG_RISCV_CORE | KVM_REG_RISCV_CORE_REG(regs.a1)": riscv.core("a1"),
    "KVM_REG_RISCV | KVM_REG_SIZE_U64 | KVM_REG_RISCV_CORE | KVM_REG_RISCV_CORE_REG(mode)": riscv.core("mode"),
    "KVM_REG_RISCV | KVM_REG_SIZE_U64 | KVM_REG_RISCV_CSR | KVM_REG_RISCV_CSR_REG(satp)": riscv.csr("satp"),
    "KVM_REG_RISCV | KVM_REG_SIZE_U64 | KVM_REG_RISCV_TIMER | KVM_REG_RISCV_TIMER_REG(state)": riscv.timer("state"),
    "KVM_REG_RISCV | KVM_REG_SIZE_U32 | KVM_REG_RISCV_FP_F | KVM_REG_RISCV_FP_F_REG(f[9])": riscv.fp_f(9),
    "KVM_REG_RISCV | KVM_REG_SIZE_U32 | KVM_REG_RISCV_FP_F | KVM_REG_RISCV_FP_F_REG(fcsr)": riscv.fp_f(32),
    "KVM_REG_RISCV | KVM_REG_SIZE_U64 | KVM_REG_RISCV_FP_D | KVM_REG_RISCV_FP_D_REG(f[31])": riscv.fp_d(31),
    "KVM_REG_RISCV | KVM_REG_SIZE_U32 | KVM_REG_RISCV_FP_D | KVM_REG_RISCV_FP_D_REG(fcsr)": riscv.fp_d(32),
    "KVM_REG_RISCV | KVM_REG_SIZE_U64 | KVM_REG_RISCV_ISA_EXT | KVM_RISCV_ISA_EXT_ZICBOM": riscv.isa_ext("Zicbom"),
    "KVM_REG_RISCV | KVM_REG_SIZE_U64 | KVM_REG_RISCV_ISA_EXT | KVM_RISCV_ISA_EXT_A": riscv.isa_ext("A"),
    "KVM_RISCV_MODE_S": riscv_structs.Regs.MODE_S,
}
# what came after the Debian release's headers, from the kernel's own of Linux 6.15
LATER = {
    "arm": (lib.KVM_ARM_SET_COUNTER_OFFSET, 0x4010AEB5),
    "masks": (lib.KVM_ARM_GET_REG_WRITABLE_MASKS, 0x8040AEB6),
    "aia": (riscv.aia_csr("iprio2h"), 0x8030000003010006),
    "smstateen": (riscv.smstateen_csr("sstateen0"), 0x8030000003020000),
    "zalrsc": (riscv.isa_ext("ZALRSC"), 0x8030000007000046),
    "isa_multi": (riscv.isa_multi(1, enable=False), 0x8030000007020001),
    "susp": (riscv.sbi_ext("SUSP"), 0x803000000800000B),
    "sbi_multi": (riscv.sbi_multi(0), 0x8030000008010000),
    "sta": (riscv.sbi_sta("shmem_hi"), 0x803000000A000001),
    "vtype": (riscv.vector_csr(2), 0x8030000009000002),
    "v1": (riscv.vector(1, 16), 0x8040000009000007),
    "aia device": (DeviceFd.RISCV_AIA, 11),
    "imsic": (riscv_platform.imsic_attr(2, 0x80), 0x2080),
}


@pytest.mark.parametrize(("arch", "table"), [("aarch64", ARM), ("riscv64", RISCV)], ids=PACKAGES)
def test_numbers_are_the_headers(arch: str, table: dict[str, int], tmp_path: Path) -> None:
    lines = [f'_Static_assert((unsigned long long)({text}) == {value}ULL, "{text}");' for text, value in table.items()]
    text = "#include <stddef.h>\n#include <linux/kvm.h>\n#include <asm/ptrace.h>\n" + "\n".join(lines)
    assert compiles(arch, text, tmp_path) == ""
    off_by_one = text.replace(f"== {next(iter(table.values()))}ULL", f"== {next(iter(table.values())) + 1}ULL")
    assert "static assertion failed" in compiles(arch, off_by_one, tmp_path)


@pytest.mark.parametrize("name", LATER)
def test_later_numbers(name: str) -> None:
    ours, kernel = LATER[name]
    assert ours == kernel


@pytest.mark.parametrize("module", [arm_structs, riscv_structs], ids=PACKAGES)
def test_structures_are_whole(module: ModuleType) -> None:
    """Each class can be built, its fields lie inside it, and it survives a round trip."""
    kinds = [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Struct)]
    assert len(kinds) > 8
    for kind in kinds:
        if kind is Struct:
            continue
        value = kind.from_bytes(bytes(index & 0x7F for index in range(kind.size())))
        assert kind.from_bytes(bytes(value)) == value
        assert len(kind.field_names) == len(set(kind.field_names)) > 0
        assert kind is MpState or repr(value).startswith(kind.__name__)


def test_the_three_packages_have_the_same_files() -> None:
    names = {arch: {path.name for path in (SOURCE / arch).glob("*.py")} for arch in ("x86_64", *PACKAGES)}
    assert names["aarch64"] == names["riscv64"]
    assert names["x86_64"] - names["aarch64"] == {
        f"{name}.py" for name in ("cpuid", "msrs", "msr_filter", "cpuid_policy", "page_walk", "topology", "xsave")
    }
    assert names["aarch64"] <= names["x86_64"]


@pytest.mark.parametrize("arch", PACKAGES)
def test_the_package_imports_as_it_would_there(arch: str) -> None:
    """With the machine's name changed before the import: the classes have that architecture's calls."""
    script = f"""
import os
real = os.uname()
os.uname = lambda: os.uname_result((*real[:4], {arch!r}))
import pyvmm_kvm
from pyvmm_kvm import Kvm, VcpuFd, VmFd, GuestDebug, Regs, VcpuState
for kind in (Kvm, VmFd, VcpuFd, GuestDebug, Regs, VcpuState):
    print(kind.__name__, kind.__mro__[1].__module__ if kind.__module__.count('.') == 1 else kind.__module__)
print(hasattr(VcpuFd, 'get_sregs'), hasattr(VcpuFd, 'get_one_reg'), hasattr(VcpuFd, 'set_guest_debug'))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    lines = result.stdout.splitlines()
    assert [line.split()[1] for line in lines[:6]] == [
        f"pyvmm_kvm.{arch}.{name}" for name in ("system", "vm", "vcpu", "debug", "structs", "state")
    ]
    assert lines[6] == "False True True"


def test_an_architecture_without_kvm_here_is_refused() -> None:
    script = "import os; r = os.uname(); os.uname = lambda: os.uname_result((*r[:4], 's390x')); import pyvmm_kvm.vcpu"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert "drives x86_64, aarch64, riscv64 hosts; this one is s390x" in result.stderr
