"""Real KVM hosts in an emulator: x86-64, arm64 and riscv64 machines made of Debian packages.

What this machine's KVM cannot show, a host of the lab can: QEMU emulates one with hardware virtualization, Debian's own
kernel brings up its `/dev/kvm`, and this checkout's packages are installed in it. It needs neither root nor KVM here.

``python -m lab aarch64 -- python3 -m pyvmm_kvm`` runs one command there and leaves with its status. A test that has
several keeps the host::

    with lab.host("aarch64") as host:
        host.run(["python3", "-m", "pyvmm_kvm"])
"""

from lab.architectures import ARCHITECTURES, Architecture
from lab.errors import LabError
from lab.hosts import Completed, Host, host
from lab.image import base as base_image

__all__ = ["ARCHITECTURES", "Architecture", "Completed", "Host", "LabError", "base_image", "host"]
