"""The example VMM as a child process, and the guests it boots."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from guest import initramfs, kernel
from guest.byte_program import pvh_elf

ROOT = Path(__file__).resolve().parents[2]
VMM = [sys.executable, str(ROOT / "examples" / "minimal_vmm.py")]
PATIENCE = 180

Vmm = Callable[..., subprocess.CompletedProcess[str]]


class DemoGuest(NamedTuple):
    """The files of the demo guest and the options that boot them."""

    kernel: Path
    initrd: Path

    def options(self, words: str = "wait=0") -> list[str]:
        cmdline = f"console=ttyS0 panic=-1 reboot=k quiet {words}"
        return ["--kernel", str(self.kernel), "--initrd", str(self.initrd), "--cmdline", cmdline]


@pytest.fixture(scope="session")
def demo() -> DemoGuest:
    """The small kernel (its build takes minutes the first time) and the demo initramfs."""
    return DemoGuest(kernel.build("boot").vmlinux, initramfs.demo())


@pytest.fixture
def vmm() -> Vmm:
    """Run the example to its end without input."""

    def run(*options: str, patience: float = PATIENCE) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*VMM, *options], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=patience, check=False
        )

    return run


@pytest.fixture
def program(tmp_path: Path) -> Callable[[bytes], str]:
    """Put instructions for 32-bit protected mode into a kernel file."""

    def make(code: bytes) -> str:
        path = tmp_path / "program.elf"
        path.write_bytes(pvh_elf(code))
        return str(path)

    return make
