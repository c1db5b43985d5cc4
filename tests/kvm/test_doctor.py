"""`python -m pyvmm_kvm` as root, as nobody with the device, as nobody without it, and without a device at all."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from pyvmm_kvm.__main__ import collect, content, kind_of_arm, kind_of_host, kind_of_riscv, main, permissions

from .guests import MACHINE

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534
# the interpreter may lie where nobody may look, so it loads everything first and then gives its rights away
AS_NOBODY = """
import contextlib, io, os, runpy, sys
with contextlib.redirect_stdout(io.StringIO()):
    import pyvmm_kvm.__main__ as doctor
    doctor.main(["--json"])
os.setgroups([])
os.setresgid(65534, 65534, 65534)
os.setresuid(65534, 65534, 65534)
assert os.geteuid() == os.getuid() == 65534
sys.exit(doctor.main(sys.argv[1:]))
"""


def run(*arguments: str, script: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", script] if script else [sys.executable, "-m", "pyvmm_kvm"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False, timeout=60)


@pytest.mark.kvm
def test_text_and_json_say_the_same() -> None:
    text, machine = run(), run("--json")
    assert (text.returncode, machine.returncode) == (0, 0), text.stderr + machine.stderr
    facts = json.loads(machine.stdout)
    assert facts["kvm"]["api_version"] == 12
    assert facts["kvm"]["capabilities"]["USER_MEMORY"] == 1
    assert facts["host"] == kind_of_host()
    assert facts["permissions"]["readable_and_writable"] is True
    assert "api version: 12" in text.stdout
    for name, value in facts["kvm"]["capabilities"].items():
        assert f"    {name}: {value}\n" in text.stdout
    assert f"host: {facts['host']}\n" in text.stdout
    # where /dev/kvm answers, its kind is known
    assert facts["host"].startswith(("hardware: ", "KVM-PVM: "))
    if MACHINE != "x86_64":
        assert "cpuid" not in facts["kvm"]
        return
    assert facts["kvm"]["cpuid"]["entries"] > 2
    assert facts["kvm"]["cpuid"]["vendor"] in text.stdout
    assert facts["kvm"]["msrs"]["saved"] > 2
    assert all(value.startswith(("0x", "cannot")) for value in facts["kvm"]["msrs"]["features"].values())


@pytest.fixture
def device() -> Iterator[Path]:
    """A device file that is /dev/kvm under another name and belongs to root alone, until a test opens it."""
    if os.geteuid() != 0:
        pytest.skip("only root makes device files and becomes nobody")
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    try:
        os.mknod(folder / "kvm", 0o600 | stat.S_IFCHR, os.stat("/dev/kvm").st_rdev)
        try:
            os.close(os.open(folder / "kvm", os.O_RDWR))
        except OSError as error:
            pytest.skip(f"device files do not work in {folder}: {error}")
        yield folder / "kvm"
    finally:
        shutil.rmtree(folder)


@pytest.mark.kvm
@pytest.mark.parametrize("form", ["--json", ""])
def test_nobody_without_access_gets_the_cause_and_the_cure(device: Path, form: str) -> None:
    result = run("--device", str(device), *filter(None, [form]), script=AS_NOBODY)
    assert result.returncode == 1
    assert result.stderr == ""
    if form:
        facts = json.loads(result.stdout)
        assert facts["permissions"]["our_user"] == NOBODY
        assert facts["permissions"]["mode"] == "600"
        assert facts["permissions"]["readable_and_writable"] is False
        assert "EACCES" in facts["problem"]
        assert "join the group that owns the device" in facts["problem"]
        assert "kvm" not in facts
        # what files tell is there nevertheless
        assert facts["host"] == kind_of_host()
    else:
        assert "open failed with EACCES" in result.stdout
        assert f"our user: {NOBODY}" in result.stdout


@pytest.mark.kvm
@pytest.mark.parametrize("form", ["--json", ""])
def test_nobody_with_access_gets_everything(device: Path, form: str) -> None:
    device.chmod(0o666)
    result = run("--device", str(device), *filter(None, [form]), script=AS_NOBODY)
    assert (result.returncode, result.stderr) == (0, "")
    if form:
        facts = json.loads(result.stdout)
        assert facts["permissions"]["our_user"] == NOBODY
        assert facts["kvm"]["capabilities"] == collect("/dev/kvm")["kvm"]["capabilities"]  # type: ignore[index]
    else:
        assert "USER_MEMORY: 1" in result.stdout


def test_without_a_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "none")
    facts = collect(missing)
    assert "no such device" in str(facts["problem"])
    assert permissions(missing)["exists"] is False
    assert main(["--device", missing]) == 1
    assert "exists: False" in capsys.readouterr().out
    ordinary = tmp_path / "file"
    ordinary.touch()
    assert main(["--device", str(ordinary), "--json"]) == 1
    assert "ENOTTY" in json.loads(capsys.readouterr().out)["problem"]


ARM_INTERRUPTS = """
           CPU0
  9:          0     GICv3  25 Level     vgic
 11:          0     GICv3  30 Level     kvm guest ptimer
 12:          0     GICv3  27 Level     kvm guest vtimer
 13:      11393     GICv3  26 Level     arch_timer
"""


def test_the_kind_of_host_is_read_from_what_everybody_may_read(tmp_path: Path) -> None:
    assert kind_of_arm(ARM_INTERRUPTS) == "hardware: Arm EL2, VHE"
    without = "\n".join(line for line in ARM_INTERRUPTS.splitlines() if "ptimer" not in line)
    assert kind_of_arm(without) == "hardware: Arm EL2, nVHE"
    assert kind_of_arm("13: 11393 GICv3 27 Level arch_timer").startswith("unknown: KVM did not start")
    line = "processor\t: 0\nhart\t\t: 0\nisa\t\t: {}\nmmu\t\t: sv57\n"
    assert kind_of_riscv(line.format("rv64imafdch_zicntr_zihpm")) == "hardware: RISC-V H extension"
    for isa in ("rv64imafdc_zicbom_zihintpause", "rv32imac", ""):
        assert kind_of_riscv(line.format(isa)).startswith("unknown: no processor has the H extension")
    assert kind_of_riscv("") == kind_of_riscv("isa") == "unknown: no processor has the H extension"
    assert content(str(tmp_path / "none")) == content(str(tmp_path)) == ""


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert "--json" in text
    assert "/dev/kvm" in text
