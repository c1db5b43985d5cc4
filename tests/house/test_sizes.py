"""Files, functions and classes that are small enough to be read at one sitting."""

import ast
from functools import cache
from pathlib import Path

from source import ROOT, modules, tree

LINES, FUNCTION_LINES, METHODS = 500, 60, 30
# the kernel's interface and the queue's are as wide as what they mirror; each of these is a part of one
MIRRORS = {"VmFd", "ArchVm", "VcpuFd", "ArchVcpu", "Queue", "BaseQueue", "SplitQueue", "PackedQueue"}


def files() -> list[Path]:
    folders = [ROOT / "examples", ROOT / "guest", *ROOT.glob("pyvmm_*/src")]
    kinds = (".py", ".pyi", ".c", ".h")
    return [path for folder in folders for path in sorted(folder.rglob("*")) if path.suffix in kinds]


def sources() -> list[Path]:
    return [path for path in files() if path.suffix == ".py"]


def is_delegate(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """Whether a method's one line hands the call, or an attribute, of an object that `self` holds on."""
    body = [node for node in function.body if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant))]
    if len(body) != 1 or not isinstance(body[0], (ast.Return, ast.Expr)):
        return False
    value = body[0].value
    if isinstance(value, (ast.YieldFrom, ast.Await)):
        value = value.value
    if isinstance(value, ast.Call):
        value = value.func
    depth = 0
    while isinstance(value, ast.Attribute):
        value, depth = value.value, depth + 1
    return isinstance(value, ast.Name) and value.id == "self" and depth >= 2


@cache
def classes() -> dict[str, list[ast.ClassDef]]:
    found: dict[str, list[ast.ClassDef]] = {}
    for path in modules().values():
        for node in ast.walk(tree(path)):
            if isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(node)
    return found


def own_methods(owner: ast.ClassDef) -> tuple[set[str], set[str]]:
    """The names of the methods and properties in a class's body, and of those that are one-line delegates."""
    own = [node for node in owner.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]
    names = {node.name for node in own if not is_delegate(node)}
    return names, {node.name for node in own} - names


def methods(owner: ast.ClassDef) -> set[str]:
    """The names of a class's methods and properties, those of our own bases among them, one-line delegates not."""
    names, delegates = own_methods(owner)
    for base in owner.bases:
        name = base.attr if isinstance(base, ast.Attribute) else getattr(base, "id", "")
        for parent in classes().get(name, ())[:1]:
            names |= methods(parent) - delegates
    return names


def test_files() -> None:
    long = {
        str(path.relative_to(ROOT)): count for path in files() if (count := len(path.read_text().splitlines())) > LINES
    }
    assert not long


def test_functions() -> None:
    long = {
        f"{path.relative_to(ROOT)}:{node.name}": count
        for path in sources()
        for node in ast.walk(tree(path))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and (count := (node.end_lineno or 0) - node.lineno + 1) > FUNCTION_LINES
    }
    assert not long


def test_classes() -> None:
    wide = {
        name: len(own_methods(owner)[0])
        for name, owners in classes().items()
        for owner in owners
        if name not in MIRRORS and len(own_methods(owner)[0]) > METHODS
    }
    assert not wide


def test_a_virtio_device_is_what_every_device_is() -> None:
    """With all that it inherits: its methods are those of each device, and of each that a reader writes."""
    (device,) = classes()["VirtioDevice"]
    assert len(methods(device)) < 25
