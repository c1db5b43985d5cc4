"""What becomes garbage in a cycle hurts nobody: the collector may clear its parts in any order."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from source import ROOT, modules, tree

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

EXPORTS = "from_buffer"
NO_MEMORYVIEW = {
    "pyvmm_kvm.dirty_ring": "of a mapping",
    "pyvmm_kvm.vcpu": "of a mapping",
    "pyvmm_kvm.x86_64.vm": "of a bytearray",
    "pyvmm_memory.bitmap": "of a bytearray, and of one for the time of a call",
    "pyvmm_memory.mmap_region": "for an address, at once gone",
    "pyvmm_memory.window": "for an address, at once gone",
    "pyvmm_virtio.devices.block.data_plane": "for the time of a call",
    "pyvmm_kvm.memory_slot": "which a Hold gets",
    "pyvmm_kvm.struct": "which a Hold gets",
}
"""Modules in which an export is not within a `with` and not handed to a `Hold` on the spot, and of what it is."""


def loose_exports(module: ast.Module) -> Iterator[ast.Call]:
    """Yield calls of cffi's from_buffer whose result may outlive the statement."""
    kept = {id(item.context_expr) for node in ast.walk(module) if isinstance(node, ast.With) for item in node.items}
    for node in ast.walk(module):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Hold":
            kept |= {id(argument) for argument in node.args}
    for node in ast.walk(module):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute) or node.func.attr != EXPORTS:
            continue
        if ast.unparse(node.func.value).endswith("ffi") and id(node) not in kept:
            yield node


def test_exports_end_before_the_collector_clears() -> None:
    found = {name for name, path in modules().items() if any(loose_exports(tree(path)))}
    assert found == set(NO_MEMORYVIEW), "an export of a memoryview belongs into a Hold: pyvmm_kvm/hold.py says why"


@pytest.mark.kvm
def test_a_machine_that_nobody_can_reach_goes_quietly() -> None:
    """Each part of it is the first to be cleared once, closed before and not."""
    script = Path(ROOT) / "tests" / "kvm" / "garbage.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, "errors []\n"), done.stderr
