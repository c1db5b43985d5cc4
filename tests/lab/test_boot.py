"""The README's first command on a machine without KVM."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.skipif(os.geteuid() != 0, reason="hiding /dev/kvm needs root")
def test_boot_without_kvm() -> None:
    # in a mount namespace of its own, so that nobody else misses it
    script = '{ ! test -e /dev/kvm || mount --bind /etc/hostname /dev/kvm; } && exec "$@" </dev/null'
    words = ["unshare", "--mount", "sh", "-c", script, "sh", sys.executable, "-m", "guest", "boot"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False, timeout=400)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "guest: Linux" in done.stdout
    assert done.stderr.startswith("/dev/kvm does not open (")
