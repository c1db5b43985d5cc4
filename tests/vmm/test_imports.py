"""The import bill of a boot: what a start of the example costs before the first instruction of its guest."""

import re
import subprocess
import sys

import pytest

BOOT_PATH = """
import sys
from pyvmm_device import I8042, BusRange, Cmos, EventFdInterrupt, EventLoop, IoManager, Serial
from pyvmm_kvm import Intr, IoIn, IoOut, Kvm, KvmError, MmioRead, MmioWrite, RunControl, Shutdown
from pyvmm_loader import BootPlan, LoaderError, split_ram
from pyvmm_memory import GuestMemoryMmap
import pyvmm_kvm.vm, pyvmm_kvm.vcpu, pyvmm_loader.images.elf, pyvmm_loader.x86_64.pvh
print(*sys.modules)
"""
TOO_EXPENSIVE = {"dataclasses", "pathlib", "logging", "inspect", "selectors", "asyncio", "shutil", "tempfile", "ctypes"}


def test_boot_path_imports_nothing_expensive(capsys: pytest.CaptureFixture[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", BOOT_PATH], capture_output=True, text=True, check=True
    )
    bill = re.findall(r"import time: +(\d+) \| +(\d+) \| ( *)(\S+)", done.stderr)
    with capsys.disabled():
        print("\nimports of the boot path, in microseconds by package:")
        for name in ("pyvmm_kvm", "pyvmm_memory", "pyvmm_device", "pyvmm_loader"):
            own = sum(int(self_time) for self_time, _, _, module in bill if module.partition(".")[0] == name)
            print(f"  {name:13} {own:6}")
        others = sorted(((int(own), module) for own, _, _, module in bill if "pyvmm" not in module), reverse=True)
        print("  the dearest others:", ", ".join(f"{module} {own}" for own, module in others[:6]))
    assert not TOO_EXPENSIVE & set(done.stdout.split())
