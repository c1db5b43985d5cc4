"""Each package installs alone into a clean virtual environment, as a wheel and from its source distribution."""

import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.mark.slow
@pytest.mark.parametrize("member", ["kvm", "memory", "device", "virtio", "loader"])
def test_installs_alone(member: str, tmp_path: Path) -> None:
    venv.create(tmp_path / "venv", with_pip=True)
    python = tmp_path / "venv/bin/python"
    pip: list[str | Path] = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, ROOT / f"pyvmm_{member}"], check=True)
    for folder in (Path("/"), ROOT):
        shown = subprocess.run(
            [python, "-c", f"import pyvmm_{member}; print(pyvmm_{member}.__file__)"],
            cwd=folder,
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        assert "site-packages" in shown


@pytest.mark.slow
@pytest.mark.parametrize("member", ["kvm", "memory", "virtio"])
def test_source_distribution_builds_an_abi3_wheel(member: str, tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv/bin/python"
    pip: list[str | Path] = [python, "-m", "pip", "--quiet", "--disable-pip-version-check", "install"]
    subprocess.run([*pip, "build"], check=True)
    subprocess.run([python, "-m", "build", "--outdir", tmp_path, ROOT / f"pyvmm_{member}"], check=True)
    assert list(tmp_path.glob("*cp311-abi3-linux_x86_64.whl"))
