"""What the README shows runs."""

import contextlib
import doctest
import importlib
import io
import re
import subprocess
import sys
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


def test_the_programs_about_virtio(tmp_path: Path) -> None:
    programs = re.findall(r"```python\n(.*?)```", (ROOT / "pyvmm_virtio/README.md").read_text(), re.DOTALL)
    (tmp_path / "disk.img").write_bytes(b"boot".ljust(512, b"."))

    def run(*command: str) -> str:
        done = subprocess.run([sys.executable, *command], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    first, second, lesson = programs
    assert run("-c", first) == "b'sector by sector'\n"
    assert run("-c", second).startswith("b'boot....")
    (tmp_path / "lesson.py").write_text(lesson)
    ways = [(transport, ring) for transport in ("mmio", "pci") for ring in ("split", "packed")]
    assert run("lesson.py") == "".join(f"{transport} {ring} 42 42\n" for transport, ring in ways)
    assert ", 0 FAIL" in run("-m", "pyvmm_virtio.conformance", "lesson.py:Adder")
    run("-m", "pyvmm_virtio.fuzz", "lesson.py:Adder", "--chains", "200")


@pytest.mark.parametrize("name", ["pyvmm_memory", "pyvmm_device", "pyvmm_virtio"])
def test_the_examples_in_the_packages(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
