"""The example's guests on hardware KVM: those whose kernel has the most to do, which KVM-PVM would interpret."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from guest import initramfs, kernel

if TYPE_CHECKING:
    from pathlib import Path

    from tests.lab.conftest import HostOf


def test_guests_of_the_example_pass(host_of: HostOf, tmp_path: Path) -> None:
    folder = tmp_path / "prepared"
    kernel.prepare(folder)
    initramfs.prepare(folder)
    host = host_of("x86_64")
    host.put(folder, "/tmp")
    done = host.run(
        ["python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "kernel_bound and not slow", "tests/vmm"],
        env={"PYVMM_PREPARED": "/tmp/prepared"},
        timeout=600,
    )
    assert done.status == 0, done.text[-4000:]
    assert re.search(r"\b[1-9]\d* passed", done.text)
    assert "skipped" not in done.text, done.text[-2000:]
