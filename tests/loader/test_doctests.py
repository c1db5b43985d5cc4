"""The examples in the docstrings run."""

from __future__ import annotations

import doctest
import importlib
import pkgutil

import pytest

import pyvmm_loader

MODULES = [
    module.name
    for module in pkgutil.walk_packages(pyvmm_loader.__path__, "pyvmm_loader.")
    if not module.name.endswith("__main__")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name: str) -> None:
    assert doctest.testmod(importlib.import_module(name)).failed == 0
