"""Devices by name, and what is wrong with names that are none."""

import json
import sys
from pathlib import Path

import pytest

import pyvmm_virtio
from pyvmm_device import DeviceStateError
from pyvmm_virtio import devices
from pyvmm_virtio.backends.memory import MemoryDisk
from pyvmm_virtio.devices import Block
from pyvmm_virtio.errors import VirtioUsageError
from pyvmm_virtio.samples import NAMES, make

from .echo import Echo


class Typeless(Echo):
    device_type = 0


class Queueless(Echo):
    def __init__(self) -> None:
        super().__init__()
        self.queues = []


class Tiny(Echo):
    def __init__(self) -> None:
        super().__init__((256, 8))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("toaster", "block, net, console, rng, or module:Class"),
        ("no.such.module:Class", "cannot be made: .*No module"),
        ("json:nothing", "cannot be made"),
        ("json:dumps", "cannot be made"),
        ("json:JSONEncoder", "no VirtioDevice but JSONEncoder"),
        (f"{__name__}:Typeless", "device_type 0"),
        (f"{__name__}:Queueless", "queue_max_sizes"),
        (f"{__name__}:Tiny", "less than 16 descriptors"),
    ],
)
def test_names_that_are_no_device(name: str, why: str) -> None:
    with pytest.raises(VirtioUsageError, match=why):
        make(name)


def test_a_class_within_a_module() -> None:
    assert isinstance(make("tests.virtio.echo:Echo"), Echo)


def test_a_class_within_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    # a name that a module has already, and one beside it
    file = tmp_path / "json.py"
    file.write_text("from beside_it import Echo\n\nclass Mine(Echo):\n    pass\n")
    (tmp_path / "beside_it.py").write_text("from tests.virtio.echo import Echo\n")
    assert isinstance(make(f"{file}:Mine"), Echo)
    monkeypatch.chdir(tmp_path)
    assert isinstance(make("json.py:Mine"), Echo)
    assert sys.modules["json"] is json
    with pytest.raises(VirtioUsageError, match="No such file"):
        make("elsewhere.py:Mine")


def test_facades_know_their_names_and_no_others() -> None:
    for facade in (pyvmm_virtio, devices):
        assert set(facade.__all__) <= set(dir(facade))
        assert all(getattr(facade, name) for name in facade.__all__)
        with pytest.raises(AttributeError, match="toaster"):
            facade.toaster  # noqa: B018 - asking is what is tested


@pytest.mark.parametrize("name", NAMES)
def test_a_state_of_another_machine_is_refused(name: str) -> None:
    device = make(name)
    state = json.loads(json.dumps(device.state()))
    for change in (
        {"queues": state["queues"][1:]},
        {"queues": [{**queue, "max_size": 1, "size": 1} for queue in state["queues"]]},
        {"offered": 1},
        {"own": None},
        {"features": 1 << 63},
    ):
        with pytest.raises(DeviceStateError):
            device.restore({**state, **change}, device.interrupt)
    device.restore(state, device.interrupt)
    for each in (device, getattr(device, "other_end", None)):
        getattr(each, "close", int)()


@pytest.mark.parametrize("serial", ["x" * 21, "\u00e9"])
def test_serials_that_do_not_fit(serial: str) -> None:
    with pytest.raises(VirtioUsageError, match="20 characters of ASCII"):
        Block(MemoryDisk(512), serial=serial)
