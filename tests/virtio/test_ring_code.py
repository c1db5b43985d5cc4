"""Ring memory is written by others while we look at it, so ring code uses only accesses that CPython does not tear."""

import re
from pathlib import Path

import pytest

import pyvmm_virtio

PACKAGE = Path(pyvmm_virtio.__file__).parent
FILES = [*sorted((PACKAGE / "queue").glob("*.py")), PACKAGE / "driver" / "rings.py"]
FORBIDDEN = {
    "pack_into": "it zeroes its target before it writes",
    r"int\.from_bytes": "it reads byte by byte",
    r"\.to_bytes": "it writes byte by byte",
    "ctypes": "it is slow, and its atomicity is nobody's promise",
}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
@pytest.mark.parametrize("pattern", FORBIDDEN)
def test_no_access_that_tears(path: Path, pattern: str) -> None:
    found = [line for line in path.read_text().splitlines() if re.search(pattern, line)]
    assert not found, FORBIDDEN[pattern]
