"""What the tests of writers share: how hard they try, what is a refusal, and the tools that read what was made."""

from __future__ import annotations

import os
import shutil
import subprocess
from typing import TYPE_CHECKING

from hypothesis import HealthCheck, settings

from pyvmm_loader import LoaderError

if TYPE_CHECKING:
    from collections.abc import Callable

REFUSALS = (LoaderError, ValueError)
EXAMPLES = int(os.environ.get("PYVMM_WRITER_EXAMPLES", "60"))
hostile = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))


def is_refused(make: Callable[[], object]) -> bool:
    """Whether something raises an error of the loader's own."""
    try:
        make()
    except REFUSALS:
        return True
    return False


def tool(name: str, *arguments: str | os.PathLike[str], data: bytes = b"") -> str | None:
    """What a tool says, or None where it is not installed; it must succeed."""
    if shutil.which(name) is None:
        return None
    done = subprocess.run([name, *arguments], input=data, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False)
    text = done.stdout.decode(errors="replace")
    assert done.returncode == 0, text
    return text
