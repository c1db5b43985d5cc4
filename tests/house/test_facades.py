"""A package hands its public names on in one form: lazily, each cached at its first use, all of them in `dir()`.

Small subpackages whose parts are used together import them at once; nothing else stands in an `__init__.py`.
"""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest
from source import handed_on, modules, tree

FORM = Path(__file__).with_name("facade.txt").read_text()
INITS = {name: path for name, path in modules().items() if path.name == "__init__.py"}
LAZY = [name for name, path in INITS.items() if any(isinstance(node, ast.FunctionDef) for node in tree(path).body)]


def is_plain(node: ast.stmt) -> bool:
    """A docstring, an import or a plain assignment."""
    return isinstance(node, (ast.Expr, ast.ImportFrom, ast.Assign, ast.AnnAssign, ast.If))


def test_the_packages_are_lazy() -> None:
    assert {name for name in INITS if "." not in name} <= set(LAZY)


@pytest.mark.parametrize("name", LAZY)
def test_lazy_facades_have_one_form(name: str) -> None:
    text = INITS[name].read_text()
    form = text[text.index("_HOME = {") :]
    # pyvmm_kvm says of a name that another architecture has where it exists
    assert form.replace("{_elsewhere(name)}", "") == FORM


@pytest.mark.parametrize("name", LAZY)
def test_lazy_facades_hand_on_what_they_say(name: str) -> None:
    package = import_module(name)
    assert set(package.__all__) == set(handed_on(name)), "what type checkers see is what there is"
    assert set(package.__all__) <= set(dir(package))
    for public in package.__all__:
        assert getattr(package, public) is vars(package)[public]
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'nothing'"):
        package.nothing  # noqa: B018 - reading it is the test


@pytest.mark.parametrize("name", LAZY)
def test_lazy_facades_import_nothing_of_theirs(name: str) -> None:
    code = f"import {name}, sys; print(*(other for other in sys.modules if other.startswith('{name}.')))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == []


@pytest.mark.parametrize("name", sorted(set(INITS) - set(LAZY)))
def test_other_packages_list_what_they_import(name: str) -> None:
    body = tree(INITS[name]).body
    assert all(map(is_plain, body))
    assert ast.get_docstring(tree(INITS[name]))
    if homes := handed_on(name):
        assert sorted(import_module(name).__all__) == sorted(homes)
