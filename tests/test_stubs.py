"""The hand-kept stubs of the compiled modules name the functions that the modules have, and no others."""

import ast
import importlib
from pathlib import Path

import pytest


@pytest.mark.parametrize("name", ["pyvmm_kvm._kvm", "pyvmm_memory._memory", "pyvmm_virtio._virtio"])
def test_stub_names_every_compiled_function(name: str) -> None:
    module = importlib.import_module(name)
    package = importlib.import_module(name.partition(".")[0])
    stub = Path(str(package.__file__)).with_name(f"{name.rpartition('.')[2]}.pyi")
    (library,) = (
        node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ClassDef) and node.name == "_Lib"
    )
    declared = {node.name for node in library.body if isinstance(node, ast.FunctionDef)} - {"__getattr__"}
    compiled = {function for function in dir(module.lib) if function.startswith("pyvmm_")}
    assert declared == compiled
