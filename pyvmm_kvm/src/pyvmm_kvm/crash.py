"""What a bug report says about a stopped vCPU: the error that ended it, its registers and its last exits."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_kvm.vcpu import VcpuFd


def crash_report(vcpu: VcpuFd, error: BaseException | None = None) -> str:
    """Return everything that a bug report needs from one stopped vCPU."""
    lines = [f"vCPU {vcpu.id} after {vcpu.exits} exits" + (f": {type(error).__name__}: {error}" if error else "")]
    try:
        lines.append(vcpu.registers)
    except OSError as trouble:
        lines.append(f"registers cannot be read: {trouble}")
    lines.append("last exits, oldest first:")
    lines += [f"  {text}" for text in vcpu.last_exits]
    return "\n".join(lines)
