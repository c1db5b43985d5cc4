"""Reference tools from Debian packages, installed where the tests may do so."""

from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from guest.host import GuestError, install

if TYPE_CHECKING:
    from pathlib import Path

PACKAGES = {"iasl": "acpica-tools", "dtc": "device-tree-compiler", "fdtdump": "device-tree-compiler"}
PACKAGES |= {"dmidecode": "dmidecode", "cpio": "cpio", "rsvg-convert": "librsvg2-bin", "xmllint": "libxml2-utils"}
PACKAGES |= {"lzop": "lzop", "zstd": "zstd", "xz": "xz-utils", "bzip2": "bzip2", "lz4": "lz4", "gzip": "gzip"}


def need(tool: str) -> str:
    """Return the path of a tool; install its package, or skip the test with the reason."""
    if shutil.which(tool) is None:
        try:
            install([PACKAGES[tool]], f"for its {tool}, which the tests compare with")
        except GuestError as error:
            pytest.skip(f"{tool} is not installed: {str(error).splitlines()[0]}")
    path = shutil.which(tool)
    assert path is not None
    return path


def run(*command: str | Path, stdin: bytes = b"") -> str:
    """Run a tool that must succeed; return all it said."""
    done = subprocess.run(command, input=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    text = done.stdout.decode(errors="replace")
    assert done.returncode == 0, text
    return text
