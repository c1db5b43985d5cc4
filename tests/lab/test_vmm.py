"""The example's guests on hardware KVM: those whose kernel has the most to do, which KVM-PVM would interpret."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import lab
from guest import initramfs, kernel

HostOf = Callable[..., lab.Host]


def test_guests_of_the_example_pass(host_of: HostOf, tmp_path: Path) -> None:
    for flavour in ("boot", "full"):
        for path in kernel.build(flavour):
            (tmp_path / f"prepared/kernels/{flavour}").mkdir(parents=True, exist_ok=True)
            shutil.copy(path, tmp_path / f"prepared/kernels/{flavour}")
    (tmp_path / "prepared/initramfs").mkdir()
    for make in (initramfs.demo, initramfs.devices, initramfs.virtio):
        shutil.copy(make(), tmp_path / f"prepared/initramfs/{make.__name__}-x86_64.cpio")
    shutil.copy(initramfs.shell(), tmp_path / "prepared/initramfs/shell.cpio")
    host = host_of("x86_64")
    host.put(tmp_path / "prepared", "/tmp")
    done = host.run(
        ["python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "kernel_bound and not slow", "tests/vmm"],
        env={"PYVMM_PREPARED": "/tmp/prepared"},
        timeout=600,
    )
    assert done.status == 0, done.text[-4000:]
    assert re.search(r"\b[1-9]\d* passed", done.text)
    assert "skipped" not in done.text, done.text[-2000:]
