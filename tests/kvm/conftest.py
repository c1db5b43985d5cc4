"""What the tests of every architecture share; those in a folder of its name need its registers and instructions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pyvmm_kvm import Kvm

from .guests import ARCHITECTURES, MACHINE, PROGRAMS, Guest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


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


@pytest.fixture
def boot(kvm: Kvm) -> Iterator[Callable[..., Guest]]:
    """Make guests of a program of `guests`, by its name."""
    made = []

    def make(program: str | bytes, **options: object) -> Guest:
        code = PROGRAMS[program] if isinstance(program, str) else program
        made.append(Guest(kvm, code, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for guest in made:
        guest.close()
