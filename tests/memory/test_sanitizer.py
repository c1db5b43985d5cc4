"""Wild arguments for everything compiled: as it is, and built with ASan and UBSan."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.rebuilt import rebuild_with_sanitizers

FUZZ = Path(__file__).with_name("fuzz_compiled.py")


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


@pytest.mark.slow
def test_wild_arguments_under_the_sanitizers(tmp_path: Path) -> None:
    environment = rebuild_with_sanitizers("pyvmm_memory", "_window", tmp_path, "-O1")
    for seed in range(4):
        run(50_000, seed, environment)
