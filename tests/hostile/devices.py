"""What is attacked: every class of the code that answers as a device, and a way to make each."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import TYPE_CHECKING, Any

from tests.device.test_conformance import DEVICES, Case, Output

import pyvmm_device
from pyvmm_device import ManualClock

if TYPE_CHECKING:
    import pytest


def modules() -> list[Any]:
    """Every module of the package."""
    found = pkgutil.walk_packages(pyvmm_device.__path__, "pyvmm_device.")
    return [pyvmm_device, *(importlib.import_module(one.name) for one in found)]


def device_classes() -> set[type]:
    """Every class with a device's `read` and `write`, without protocols and what is only inherited from."""
    classes = {
        value
        for module in modules()
        for value in vars(module).values()
        if inspect.isclass(value) and value.__module__ == module.__name__ and is_device(value)
    }
    return {one for one in classes if not any(one in other.__mro__[1:] for other in classes)}


def is_device(kind: type) -> bool:
    """Whether a class has the methods of `pyvmm_device.Device`."""
    methods = [getattr(kind, name, None) for name in ("read", "write")]
    return not getattr(kind, "_is_protocol", False) and all(
        inspect.isfunction(method) and list(inspect.signature(method).parameters)[1:2] == ["offset"]
        for method in methods
    )


def made_by(monkeypatch: pytest.MonkeyPatch, case: Case, classes: set[type]) -> set[type]:
    """Which of some classes a case makes."""
    made: set[type] = set()

    def watch(kind: type) -> None:
        init = kind.__init__  # type: ignore[misc]

        def wrapped(self: object, *args: Any, **named: Any) -> None:  # noqa: ANN401 - whatever it takes
            made.add(type(self))
            init(self, *args, **named)

        monkeypatch.setattr(kind, "__init__", wrapped)

    with monkeypatch.context() as monkeypatch:
        for kind in classes:
            watch(kind)
        case.make(Output(), ManualClock())
    return made


NOT_ALONE = {"Window"}
"""A view of another device's registers: it has no state and calls nobody else."""

__all__ = ["DEVICES", "NOT_ALONE", "Case", "Output", "device_classes", "made_by", "modules"]
