"""A package built once more, with other flags, into a folder of its own: for sanitizers and for coverage of C."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SANITIZERS = "-fsanitize=address,undefined"


def library(name: str) -> str:
    return subprocess.run(["cc", f"-print-file-name={name}"], capture_output=True, text=True, check=True).stdout.strip()


def rebuild(package: str, folder: Path, cflags: str, ldflags: str) -> dict[str, str]:
    """Build a package; returns the environment in which Python takes what was built."""
    copy = folder / package
    subprocess.run(["cp", "-r", ROOT / package, copy], check=True)
    for built in (copy / "src" / package).glob("*.so"):
        built.unlink()
    subprocess.run(
        [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace", "--force"],
        cwd=copy,
        env=os.environ | {"CFLAGS": cflags, "LDFLAGS": ldflags, "CC": "cc"},
        check=True,
        capture_output=True,
    )
    return os.environ | {"PYTHONPATH": f"{copy / 'src'}:{ROOT}"}


def rebuild_with_sanitizers(package: str, module: str, folder: Path, more_cflags: str) -> dict[str, str]:
    """Build a package with ASan and UBSan, whose libraries come before everything; skips where there are none."""
    runtime = library("libasan.so")
    if not os.path.isabs(runtime):
        pytest.skip("the compiler has no libasan")
    flags = f"{SANITIZERS} -fno-sanitize-recover=undefined -fno-omit-frame-pointer -g {more_cflags}"
    environment = rebuild(package, folder, flags, SANITIZERS) | {
        "LD_PRELOAD": f"{runtime} {library('libubsan.so')}",
        # the interpreter keeps some of its memory to the end
        "ASAN_OPTIONS": "detect_leaks=0:halt_on_error=1",
        "PYTHONMALLOC": "malloc",
    }
    where = subprocess.run(
        [sys.executable, "-c", f"import {package}.{module} as module; print(module.__file__)"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert where.stdout.startswith(str(folder))
    return environment
