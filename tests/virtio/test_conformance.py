"""The clauses are whole, our devices pass, and devices that are wrong on purpose do not."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pyvmm_virtio.conformance import CLAUSES, grade
from pyvmm_virtio.conformance.checks import CHECKS
from pyvmm_virtio.conformance.grading import run
from pyvmm_virtio.constants import features as f
from pyvmm_virtio.device import VirtioDevice
from pyvmm_virtio.devices import Rng
from pyvmm_virtio.features import RING_FEATURES
from pyvmm_virtio.interrupt import NoInterrupt
from pyvmm_virtio.samples import NAMES

from .echo import Echo

ROOT = Path(__file__).resolve().parents[2]


def test_each_clause_is_checked_tested_or_explained() -> None:
    for clause in CLAUSES:
        assert len([each for each in (clause.check, clause.test, clause.why) if each]) == 1, clause
        assert re.fullmatch(r"\d+(\.\d+)*( to \d+)?", clause.section), clause
        if clause.check:
            assert clause.check in CHECKS, clause
        if clause.test:
            file, _, name = clause.test.partition("::")
            assert name.startswith("test_"), clause
            assert f"def {name}" in (ROOT / file).read_text(), clause
    assert {clause.check for clause in CLAUSES if clause.check} == set(CHECKS)


class Short(Echo):
    def __init__(self) -> None:
        super().__init__((16,))


@pytest.mark.parametrize("device", [*NAMES, "tests.virtio.echo:Echo", f"{__name__}:Short"])
def test_our_devices_pass(device: str) -> None:
    failed = [result for result in grade(device) if result.verdict == "FAIL"]
    assert failed == []


class Early(Echo):
    def kick(self, index: int) -> None:
        self.active = True
        super().kick(index)


class Silent(Echo):
    def fail(self, error: Exception) -> None:
        self.needs_reset = True


class OffersTooMuch(Echo):
    def check_features(self, features: int) -> str | None:
        return "not both" if features >> 5 & 3 == 3 else None


class Nobody(Echo):
    device_type = 64


class Mute(Echo):
    def __init__(self) -> None:
        super().__init__(())


class TakesAnything(Echo):
    def negotiate(self, features: int) -> str | None:
        return super().negotiate(features & self.device_features)


class Legacy(Echo):
    def __init__(self) -> None:
        super().__init__(ring_features=RING_FEATURES & ~(1 << f.VIRTIO_F_VERSION_1))


class Backwards(Echo):
    def process_queue(self, index: int) -> None:
        queue = self.queues[index]
        queue.set_in_order(False)
        chains = list(self.chains(index))
        for chain in reversed(chains):
            answer = chain.reader(self.memory).read()
            self.complete(index, chain, chain.writer(self.memory).write(answer))


class OneBuffer(Echo):
    def process_queue(self, index: int) -> None:
        for chain in self.chains(index):
            first = next(iter(chain.writable()), None)
            answer = b"x" * first.len if first else b""
            self.complete(index, chain, chain.writer(self.memory).write(answer))


class WritesInput(Echo):
    def process_queue(self, index: int) -> None:
        for chain in self.chains(index):
            for descriptor in chain.readable():
                with self.memory.get_slice(descriptor.addr, 1) as view:
                    view[0] ^= 0xFF
            self.complete(index, chain, 0)


class WritesBeside(Echo):
    def process_queue(self, index: int) -> None:
        for chain in self.chains(index):
            for descriptor in chain.writable():
                with self.memory.get_slice(descriptor.addr, descriptor.len + 4) as view:
                    view[:] = bytes(len(view))
            self.complete(index, chain, 0)


class Scribbles(Echo):
    def process_queue(self, index: int) -> None:
        super().process_queue(index)
        with self.memory.get_slice(self.queues[index].desc_table() + 8, 1) as view:
            view[0] ^= 0xFF


class Quiet(Echo):
    def start(self, interrupt: object) -> None:
        super().start(NoInterrupt())


class Boasts(Echo):
    def process_queue(self, index: int) -> None:
        for chain in self.chains(index):
            self.complete(index, chain, sum(descriptor.len for descriptor in chain.writable()))


class LateConfig(Echo):
    def driver_read_config(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = bytes(len(buffer))


class Frozen(Echo):
    def config_changed(self) -> None:
        pass


class KeepsGoing(Echo):
    def driver_queue_reset(self, index: int) -> None:
        pass


class Impatient(Echo):
    def process_queue(self, index: int) -> None:
        served = self.served
        super().process_queue(index)
        if self.served == served:
            raise ValueError("nothing there")


class TwoRegions(Echo):
    shared_memory = (*Echo.shared_memory, *Echo.shared_memory)  # type: ignore[assignment] # more than Echo's


class EmptyHanded(Rng):
    def process_queue(self, index: int) -> None:
        for chain in self.chains(index):
            self.complete(index, chain, 0)


WRONG: list[tuple[type[VirtioDevice], str]] = [
    (Early, "quiet_before_driver_ok"),
    (Silent, "needs_reset_is_told"),
    (OffersTooMuch, "everything_offered_works"),
    (TakesAnything, "unoffered_features_are_refused"),
    (Legacy, "offers_version_1"),
    (Backwards, "in_order"),
    (OneBuffer, "any_layout"),
    (WritesInput, "readable_buffers_stay"),
    (WritesBeside, "readable_buffers_stay"),
    (Scribbles, "descriptors_stay"),
    (Quiet, "suppression_by_flags"),
    (Quiet, "suppression_by_event"),
    (Boasts, "lengths_are_honest"),
    (LateConfig, "configuration_can_be_read_early"),
    (Frozen, "generation_changes"),
    (KeepsGoing, "queue_reset"),
    (Impatient, "spurious_notifications"),
    (TwoRegions, "shared_memory_is_bounded"),
    (EmptyHanded, "entropy"),
]


@pytest.mark.parametrize(("kind", "check"), WRONG, ids=[f"{kind.__name__}-{check}" for kind, check in WRONG])
def test_what_is_wrong_is_found(kind: Callable[[], VirtioDevice], check: str) -> None:
    verdict, details = run(check, kind)
    assert verdict == "FAIL", details


def conformance(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pyvmm_virtio.conformance", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def test_the_command() -> None:
    done = conformance("rng", "--json")
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)
    assert {"section": "5.4.6.2", "clause": "places one or more random bytes into each buffer"}.items() <= rows[
        -14
    ].items()
    assert conformance("tests.virtio.test_conformance:Boasts", "--failed").returncode == 1
    here = "tests.virtio.test_conformance"
    for nobody in (
        "toaster",
        "no.such:Thing",
        "json:loads",
        "tests.virtio.echo:CONFIG",
        f"{here}:Nobody",
        f"{here}:Mute",
    ):
        done = conformance(nobody)
        assert done.returncode == 2
        assert nobody in done.stderr


def test_an_attack_has_one_chain_at_least() -> None:
    command = [sys.executable, "-m", "pyvmm_virtio.fuzz", "rng", "--chains", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 2
    assert "--chains 0: give at least 1" in done.stderr
