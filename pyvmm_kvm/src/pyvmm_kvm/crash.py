"""What a bug report says about a stopped vCPU: the error that ended it, its registers and its last exits."""

from __future__ import annotations

from pyvmm_kvm.exits.hot import Shutdown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_kvm.vcpu import VcpuFd

# arch/x86/kvm/svm/svm.c: "VMCB is undefined after a SHUTDOWN intercept. INIT the vCPU to put the VMCB in a known good
# state"
LOST = (
    "these registers are those of a reset: KVM resets a vCPU of an AMD host at its triple fault, and what the guest "
    "had in them is lost"
)


def crash_report(vcpu: VcpuFd, error: BaseException | None = None) -> str:
    """Return everything that a bug report needs from one stopped vCPU."""
    lines = [f"vCPU {vcpu.id} after {vcpu.exits} exits" + (f": {type(error).__name__}: {error}" if error else "")]
    try:
        lines.append(vcpu.registers)
        if vcpu.last_exits[-1:] == [repr(Shutdown())] and vcpu.in_reset_state:
            lines.append(LOST)
    except OSError as trouble:
        lines.append(f"registers cannot be read: {trouble}")
    lines.append("last exits, oldest first:")
    lines += [f"  {text}" for text in vcpu.last_exits]
    return "\n".join(lines)
