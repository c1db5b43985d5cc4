"""Wild arguments for everything compiled: as it is, and built with ASan and UBSan."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FUZZ = Path(__file__).with_name("fuzz_compiled.py")
FLAGS = "-fsanitize=address,undefined -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g -O1"


def run(count: int, seed: int, environment: dict[str, str]) -> None:
    done = subprocess.run(
        [sys.executable, FUZZ, str(count), str(seed)],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    assert f"survived {count}" in done.stdout


@pytest.mark.parametrize("seed", [1, 2])
def test_wild_arguments(seed: int) -> None:
    run(5000, seed, {})


def library(name: str) -> str:
    return subprocess.run(["cc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.slow
def test_wild_arguments_under_the_sanitizers(tmp_path: Path) -> None:
    """The package is built again, into a folder of its own, and the sanitizers' libraries come before everything."""
    runtime = library("libasan.so")
    if not os.path.isabs(runtime):
        pytest.skip("the compiler has no libasan")
    source = ROOT / "pyvmm_memory"
    copy = tmp_path / "source"
    subprocess.run(["cp", "-r", source, copy], check=True)
    for built in (copy / "src" / "pyvmm_memory").glob("*.so"):
        built.unlink()
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
        cwd=copy,
        env=os.environ | {"CFLAGS": FLAGS, "LDFLAGS": "-fsanitize=address,undefined", "CC": "cc"},
        check=True,
        capture_output=True,
    )
    environment = {
        "LD_PRELOAD": f"{runtime} {library('libubsan.so')}",
        # the interpreter keeps some of its memory to the end
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
        "PYTHONMALLOC": "malloc",
        "PYTHONPATH": str(copy / "src"),
    }
    where = subprocess.run(
        [sys.executable, "-c", "import pyvmm_memory._window as w; print(w.__file__)"],
        env=os.environ | environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert where.stdout.startswith(str(copy)), sysconfig.get_platform()
    for seed in range(4):
        run(50_000, seed, environment)
