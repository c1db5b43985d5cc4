"""No source of the packages uses `pack_into` or `int.from_bytes` on live guest memory.

`struct.pack_into` zeroes its target before it writes: another CPU sees the zeros. `int.from_bytes` of a view reads it
byte by byte: another CPU's write is seen half done. On a private copy both are fine.

Everywhere, a view of guest memory is refused: what `get_slice`, `get_slices`, `as_view` or `place` returns, parts and
casts of it, and names assigned from them. In the code that lives on guest memory (all of pyvmm_memory, the queues) that
is not enough, and the copy must be visible: a call of `bytes`, `bytearray`, `pack` ..., or a name assigned from one.
`# private copy: why` on the line says it where the rule cannot see it.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MARK = "# private copy"
STRICT = ("pyvmm_memory/", "pyvmm_virtio/queue/")
VIEWS = {"get_slice", "get_slices", "as_view", "place"}
COPIES = {"bytes", "bytearray", "pack", "read", "pread", "join", "tobytes", "to_bytes", "fromhex", "read_exact"}


def called(node: ast.AST) -> str:
    if not isinstance(node, ast.Call):
        return ""
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def root_of(node: ast.AST) -> ast.AST:
    """What a part or a cast was taken of."""
    if isinstance(node, ast.Subscript):
        return root_of(node.value)
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("cast", "toreadonly"):
        return root_of(node.func.value)
    return node


def assignments(function: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    for node in ast.walk(function):
        if isinstance(node, ast.Assign):
            yield from ((target.id, node.value) for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
            yield node.target.id, node.value
        elif isinstance(node, ast.withitem) and isinstance(node.optional_vars, ast.Name):
            yield node.optional_vars.id, node.context_expr
        elif isinstance(node, ast.arg) and node.annotation is not None:
            yield node.arg, ast.Call(ast.Name(ast.unparse(node.annotation)), [], [])


def is_view(node: ast.AST, names: set[str]) -> bool:
    node = root_of(node)
    return called(node) in VIEWS or (isinstance(node, ast.Name) and node.id in names)


def is_copy(node: ast.AST, names: set[str]) -> bool:
    node = root_of(node)
    if isinstance(node, ast.Constant) or called(node) in COPIES:
        return True
    return isinstance(node, ast.Name) and node.id in names


def offences(source: str, strict: bool) -> Iterator[int]:
    """The lines that use either on what may be live memory."""
    lines = source.splitlines()
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef):
            continue
        known = list(assignments(function))
        views = {name for name, value in known if is_view(value, set())}
        copies = {name for name, value in known if is_copy(value, set())} - views
        for node in ast.walk(function):
            if called(node) not in ("pack_into", "from_bytes") or MARK in lines[node.lineno - 1]:  # type: ignore[attr-defined]
                continue
            assert isinstance(node, ast.Call)
            arguments = node.args[1:] if ast.unparse(node.func) == "struct.pack_into" else node.args
            target = arguments[0] if arguments else node
            if is_view(target, views) or (strict and not is_copy(target, copies)):
                yield node.lineno


@pytest.mark.parametrize("package", sorted(path.name for path in ROOT.glob("pyvmm_*") if path.is_dir()))
def test_live_memory_is_not_touched_so(package: str) -> None:
    found = []
    source = ROOT / package / "src"
    for path in sorted(source.rglob("*.py")):
        name = str(path.relative_to(source))
        found += [f"{name}:{line}" for line in offences(path.read_text(), name.startswith(STRICT))]
    assert not found, f"may be live memory (the rule is at the head of {Path(__file__).name}): {sorted(set(found))}"


@pytest.mark.parametrize(
    ("line", "allowed", "allowed_strictly"),
    [
        ("int.from_bytes(memory.get_slice(0, 2), 'little')", False, False),
        ("int.from_bytes(memory.get_slice(0, 2)[1:].cast('B'), 'little')", False, False),
        ("struct.pack_into('<H', ring, 0, 1)", False, False),
        ("LAYOUT.pack_into(ring, 0, 1)", False, False),
        ("int.from_bytes(self.view[0:2], 'little')", True, False),
        ("int.from_bytes(view[0:2], 'little')", True, False),
        ("LAYOUT.pack_into(whoever, 0, 1)", True, False),
        ("int.from_bytes(bytes(view[0:2]), 'little')", True, True),
        ("int.from_bytes(data[:2], 'little')", True, True),
        ("int.from_bytes(argument, 'little')", True, True),
        ("struct.pack_into('<H', copy, 0, 1)", True, True),
        ("LAYOUT.pack_into(ring, 0, 1)  # private copy: not yet published", True, True),
    ],
)
def test_the_rule_itself(line: str, allowed: bool, allowed_strictly: bool) -> None:
    source = (
        "def f(view: memoryview, argument: bytes, whoever):\n"
        f" data = file.read(9)\n copy = bytearray(2)\n ring = memory.get_slice(0, 8)\n {line}\n"
    )
    assert (not list(offences(source, strict=False))) is allowed
    assert (not list(offences(source, strict=True))) is allowed_strictly
