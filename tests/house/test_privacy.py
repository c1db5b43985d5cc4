"""What a file keeps to itself stays there: no private name of ours is used in another file, `x._name` included."""

import ast
from collections.abc import Iterator
from pathlib import Path

from source import ROOT, modules, tree


def is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")


def defined(path: Path) -> set[str]:
    """The private names that a file makes: functions, classes, variables, attributes and slots."""
    names = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            names.add(node.attr)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            names.add(node.id)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            names.add(node.value)  # __slots__
    return {name for name in names if is_private(name)}


def used(path: Path) -> Iterator[tuple[int, str]]:
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Attribute) and is_private(node.attr):
            yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom):
            yield from ((node.lineno, alias.name) for alias in node.names if is_private(alias.name))


def test_private_names_stay_in_their_file() -> None:
    paths = [*modules().values(), *sorted((ROOT / "examples").glob("*.py")), *sorted((ROOT / "guest").glob("*.py"))]
    own = {path: defined(path) for path in paths}
    ours = set().union(*own.values())
    # compiled modules and the like are files, not names in one
    files = {path.stem for path in ROOT.glob("pyvmm_*/src/**/_*.py*")}
    across = sorted(
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in paths
        for line, name in used(path)
        if name in ours and name not in own[path] and name not in files
    )
    assert not across, "\n".join(across)
