"""What a guest can repeat is logged once and then counted, by one helper, and the counters can be read."""

from __future__ import annotations

import ast
import importlib
import json
import logging
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from tests.device import test_conformance as device_cases
from tests.hostile.mutations import mutate

from pyvmm_device import ManualClock
from pyvmm_device.tally import MOST_KINDS, OTHERS, Tally
from pyvmm_virtio.fuzz import Fuzzer
from pyvmm_virtio.samples import NAMES, make

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ROOT = Path(__file__).resolve().parents[2]
MODULES = sorted(path for path in ROOT.glob("pyvmm_*/src/pyvmm_*/**/*.py") if path.name != "__main__.py")
HELPER = "pyvmm_device/src/pyvmm_device/tally.py"
LOGS = {"getLogger", "warn", "warn_explicit", "print_exc", "print_exception", "print_stack"}
PRINTS = {"stdout", "stderr"}
COMMANDS = ("/commands/", "/doctor", "/lessons/")
"""Where somebody sits before it, and a guest is not at work."""


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), str(path))


def test_only_the_helper_logs() -> None:
    """A logger that is not the helper's is one that a guest may flood: nobody else takes one, prints or warns."""
    wrong = []
    for path in MODULES:
        name = str(path.relative_to(ROOT))
        if name == HELPER or any(part in f"/{name}" for part in COMMANDS):
            continue
        for node in ast.walk(tree(path)):
            called = node.func if isinstance(node, ast.Call) else None
            if isinstance(called, ast.Attribute) and called.attr in LOGS:
                wrong.append(f"{name}:{node.lineno}: {called.attr}")  # type: ignore[attr-defined]  # a call has a line
            if isinstance(called, ast.Name) and called.id == "print":
                wrong.append(f"{name}:{called.lineno}: print")
            if isinstance(node, (ast.Import, ast.ImportFrom)) and (taken := imported(node) & {"logging", "warnings"}):
                wrong.append(f"{name}:{node.lineno}: import {' '.join(taken)}")
            if isinstance(node, ast.Attribute) and node.attr in PRINTS and ast.unparse(node.value) == "sys":
                wrong.append(f"{name}:{node.lineno}: sys.{node.attr}")
    assert not wrong, "count it by pyvmm_device.tally.Tally:\n" + "\n".join(wrong)


def imported(node: ast.Import | ast.ImportFrom) -> set[str]:
    """The modules of an import: under another name, or by their functions, they would log as well."""
    return {alias.name for alias in node.names} if isinstance(node, ast.Import) else {node.module or ""}


def test_counters_can_be_read() -> None:
    """A tally is a public attribute, or a public method or property of its class reads it."""
    wrong = []
    for path in MODULES:
        for holder in ast.walk(tree(path)):
            if isinstance(holder, ast.ClassDef):
                wrong += [f"{path.relative_to(ROOT)}: {holder.name}.{name}" for name in unreadable(holder)]
    assert not wrong, "give them a property:\n" + "\n".join(wrong)


def unreadable(holder: ast.ClassDef) -> list[str]:
    names = set()
    for node in ast.walk(holder):
        value = getattr(node, "value", None)
        made = isinstance(value, ast.Call) and ast.unparse(value.func) == "Tally"
        if made and isinstance(node, (ast.Assign, ast.AnnAssign)):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.attr for target in targets if isinstance(target, ast.Attribute)}
    read = set()
    for function in holder.body:
        if isinstance(function, ast.FunctionDef) and not function.name.startswith("_"):
            for node in ast.walk(function):
                if isinstance(node, ast.Return):
                    read |= {each.attr for each in ast.walk(node) if isinstance(each, ast.Attribute)}
    return sorted(name for name in names if name.startswith("_") and name not in read)


@pytest.fixture
def tallies(monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Returns what says how many kinds of events were counted, by whatever counts."""
    everyone: list[Tally] = []
    first = Tally.__init__

    def note(self: Tally, logger: str) -> None:
        first(self, logger)
        everyone.append(self)

    monkeypatch.setattr(Tally, "__init__", note)
    return lambda: sum(len(each) for each in everyone)


class Records(logging.Handler):
    """Keeps what is logged by the packages."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


@pytest.fixture
def records() -> Iterator[Records]:
    handler, root = Records(), logging.getLogger()
    root.addHandler(handler)
    yield handler
    root.removeHandler(handler)


@pytest.mark.parametrize("ring", ["split", "packed"])
@pytest.mark.parametrize("transport", ["mmio", "pci"])
@pytest.mark.parametrize("name", [*NAMES, "tests.virtio.echo:Echo", "tests.hostile.test_logs:Buggy"])
def test_an_attack_on_a_virtio_device_is_logged_once(
    name: str, transport: str, ring: str, records: Records, tallies: Callable[[], int]
) -> None:
    device = make(name)
    fuzzer: Any = Fuzzer(device, transport, ring, seed=5, rate=2)
    fuzzer._check_bugs = lambda: None  # a device of somebody else may have bugs; they must not fill the log either
    counted = []
    for _ in range(3):
        fuzzer.run(300)
        counted.append(sum(device.errors.values()))
    assert counted[2] > counted[0], "it is an attack"
    assert len(records.texts) <= tallies(), "\n".join(records.texts)
    assert len(set(records.texts)) == len(records.texts)
    assert all(len(text) < 20_000 for text in records.texts)
    fuzzer.close()
    for each in (device, getattr(device, "other_end", None)):
        getattr(each, "close", int)()


def Buggy() -> Any:  # noqa: N802, ANN401 - a device as the fuzzer's command takes it
    """A device that fails by an error of its own, another one each time, with whatever is not all zeros."""
    from tests.virtio.echo import Echo

    class Failing(Echo):
        def sample_request(self, queue: int, chance: random.Random) -> tuple[list[bytes], list[int]]:
            return [bytes(8)], [8]

        def process_queue(self, index: int) -> None:
            for chain in self.chains(index):
                data = chain.reader(self.memory).read()
                if any(data):
                    raise ZeroDivisionError(data.hex())
                self.complete(index, chain, 0)

    return Failing()


class Full(device_cases.Output):
    """A world in which nothing works: a full disk, a line that nobody takes."""

    def _fail(self, *_: object) -> None:
        raise OSError(28, "No space left on device")

    trigger = assert_ = clear = write = _fail  # type: ignore[assignment]

    class _Events(list[object]):
        def append(self, _: object) -> None:
            raise OSError(5, "Input/output error")

    def __init__(self) -> None:
        self.events = self._Events()


@pytest.mark.parametrize("name", list(device_cases.DEVICES))
def test_an_attack_on_a_device_is_logged_once(name: str, records: Records, tallies: Callable[[], int]) -> None:
    case, clock, chance = device_cases.DEVICES[name], ManualClock(), random.Random(name)
    device = case.make(Full(), clock)
    saved = json.loads(json.dumps(device.state()))
    for number in range(2000):
        step = chance.randrange(4), chance.randrange(1 << 20), chance.choice((1, 2, 4, 8)), chance.getrandbits(64)
        try:
            device_cases.do(case, device, clock, step)
            if not number % 20:
                device.restore(mutate(saved, chance))
        except Exception:  # noqa: BLE001, S112 - what comes out is for others to judge, here it is the log that counts
            continue
    assert len(records.texts) <= tallies(), "\n".join(records.texts)


def test_kinds_have_an_end(caplog: pytest.LogCaptureFixture) -> None:
    tally = Tally("pyvmm_device.somebody")
    for number in range(10 * MOST_KINDS):
        tally.count(f"kind {number}", "%d", number)
    assert len(tally) == len(caplog.records) == MOST_KINDS + 1
    assert tally[OTHERS] == 9 * MOST_KINDS


def test_the_modules_are_found() -> None:
    assert len(MODULES) > 300
    assert importlib.import_module("pyvmm_device.tally").__file__ == str(ROOT / HELPER)
