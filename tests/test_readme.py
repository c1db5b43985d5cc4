"""What the README shows runs."""

import contextlib
import doctest
import importlib
import io
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.kvm
def test_the_program_in_the_readme() -> None:
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        exec(compile(program, "README.md", "exec"), {})
    assert said.getvalue() == "port 0x10: 42\n"


@pytest.mark.parametrize("name", ["pyvmm_memory", "pyvmm_device", "pyvmm_virtio"])
def test_the_examples_in_the_packages(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
