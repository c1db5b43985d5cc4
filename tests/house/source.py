"""The packages' source as this folder's tests read it: every module, parsed once, with its name and its imports."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = tuple(sorted(path.parents[2].name for path in ROOT.glob("pyvmm_*/src/pyvmm_*/__init__.py")))


@cache
def modules() -> dict[str, Path]:
    """Every module of the packages by its dotted name; a package's `__init__` has the package's."""
    found = {}
    for package in PACKAGES:
        source = ROOT / package / "src"
        for path in sorted((source / package).rglob("*.py")):
            name = ".".join(path.relative_to(source).with_suffix("").parts)
            found[name.removesuffix(".__init__")] = path
    return found


@cache
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def is_type_checking(test: ast.expr) -> bool:
    """Whether a condition is `TYPE_CHECKING` and nothing else."""
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def run_time_nodes(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes below one but those that only a type checker sees; bodies of functions are among them."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and is_type_checking(child.test):
            for other in child.orelse:
                yield other
                yield from run_time_nodes(other)
            continue
        yield child
        yield from run_time_nodes(child)


def imported(name: str) -> set[str]:
    """The modules of ours that one module imports when it runs, lazily or not.

    A package's `__init__` that hands names on (a facade) imports nothing that its callers would not import by name.
    """
    known, found = modules(), set()
    for node in run_time_nodes(tree(known[name])):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name in known}
        elif isinstance(node, ast.ImportFrom) and node.module in known:
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in known else home_of(node.module, alias.name))
    return found - {name}


@cache
def handed_on(package: str) -> dict[str, str]:
    """For an `__init__`: the module that each name it hands on stands in, those for type checkers included."""
    homes = {}
    body = tree(modules()[package]).body
    for node in [*body, *(node for condition in body if isinstance(condition, ast.If) for node in condition.body)]:
        if isinstance(node, ast.ImportFrom) and node.module in modules():
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                homes[alias.asname or alias.name] = whole if whole in modules() else node.module
    return homes


def home_of(module: str, name: str) -> str:
    """The module that defines a name which another module imports from `module`."""
    while modules()[module].name == "__init__.py" and name in handed_on(module):
        home = handed_on(module)[name]
        if home == module:
            break
        module = home
    return module


@cache
def graph() -> dict[str, set[str]]:
    return {name: imported(name) for name in modules()}


def circles() -> list[set[str]]:
    """The strongly connected components of the import graph with more than one module (Tarjan's algorithm)."""
    arrows = graph()
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[set[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for other in arrows[name]:
            if other not in index:
                visit(other)
                low[name] = min(low[name], low[other])
            elif other in stack:
                low[name] = min(low[name], index[other])
        if low[name] == index[name]:
            members = set()
            while name not in members:
                members.add(stack.pop())
            if len(members) > 1:
                found.append(members)

    for name in arrows:
        if name not in index:
            visit(name)
    return found
