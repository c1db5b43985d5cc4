"""What the tests of every architecture share; those in a folder of its name need its registers and instructions."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import pytest

from pyvmm_kvm import Kvm

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MACHINE = os.uname().machine
ARCHITECTURES = ("x86_64", "aarch64", "riscv64")


class Elsewhere(pytest.Module):
    """A module of another architecture, which is not even imported."""

    def collect(self) -> list[pytest.Item]:
        pytest.skip(f"needs {self.path.parent.name} and its KVM; this host is {MACHINE}", allow_module_level=True)


def pytest_pycollect_makemodule(module_path: Path, parent: pytest.Collector) -> Elsewhere | None:
    where = module_path.parent.name
    if where not in ARCHITECTURES or where == MACHINE:
        return None
    return Elsewhere.from_parent(parent, path=module_path)


@pytest.fixture
def kvm() -> Iterator[Kvm]:
    with Kvm() as opened:
        yield opened
