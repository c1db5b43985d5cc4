"""Each package comes from its src folder, never from the bare folder of the same name at the repository's root."""

import importlib

import pytest

PACKAGES = ["pyvmm_kvm", "pyvmm_memory", "pyvmm_device", "pyvmm_virtio", "pyvmm_loader"]


@pytest.mark.parametrize("name", PACKAGES)
def test_is_a_real_package(name: str) -> None:
    # a namespace package, which the bare folder would make, has no file
    assert importlib.import_module(name).__file__ is not None
