"""`pyvmm_kvm` on hardware KVM of three architectures: the doctor, and every test that has a meaning there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import lab
import pytest

if TYPE_CHECKING:
    from tests.lab.conftest import HostOf


@pytest.mark.parametrize("architecture", list(lab.ARCHITECTURES))
def test_the_doctor_finds_hardware(host_of: HostOf, architecture: str) -> None:
    done = host_of(architecture).run(["python3", "-m", "pyvmm_kvm"])
    assert done.status == 0, done.stderr
    kinds = [line for line in done.text.splitlines() if line.startswith("host: hardware: ")]
    assert len(kinds) == 1
    if architecture == "x86_64":
        assert kinds == ["host: hardware: AMD-V"]


@pytest.mark.parametrize("architecture", list(lab.ARCHITECTURES))
def test_the_tests_of_pyvmm_kvm_pass(host_of: HostOf, architecture: str) -> None:
    done = host_of(architecture).run(
        ["python3", "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kvm"], timeout=600
    )
    print(done.text[done.text.rfind("\n\n") :])
    assert done.status == 0, done.text[-4000:]
    assert " passed" in done.text
