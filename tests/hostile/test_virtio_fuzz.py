"""Every device, behind both transports and with both rings, under attack.

PYVMM_FUZZ_CHAINS says how many chains all of it takes together: 20,000 by default, a few seconds. Continuous
integration runs 200,000; the long run is ``pytest --slow``, 5 million.
"""

import gc
import os
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import pytest
from tests.virtio.echo import Echo

from pyvmm_virtio.device import VirtioDevice
from pyvmm_virtio.fuzz import Finding, Fuzzer
from pyvmm_virtio.samples import NAMES, make

CHAINS = int(os.environ.get("PYVMM_FUZZ_CHAINS", "20000"))
LONG = 5_000_000
DEVICES = [
    *NAMES,
    "tests.virtio.echo:Echo",
    "tests.virtio.raw_disk:planed",
    "tests.virtio.raw_disk:planed_with_threads",
]
COMBINATIONS = [
    (device, transport, ring) for device in DEVICES for transport in ("mmio", "pci") for ring in ("split", "packed")
]


@pytest.fixture
def often_switched() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """What holds a view of guest memory lets it go by itself, or the memory could not be closed at the end."""
    gc.disable()
    yield
    gc.enable()
    gc.collect()


def attack(device: str, transport: str, ring: str, chains: int, seed: int, *, racing: bool = False) -> Fuzzer:
    subject = make(device)
    beside = frames(subject, Random(seed)) if device == "net" else None
    with Fuzzer(subject, transport, ring, seed=seed, racing=racing, beside=beside) as fuzzer:
        report = fuzzer.run(chains)
    for each in (subject, getattr(subject, "other_end", None)):
        getattr(each, "close", int)()
    assert report.chains == chains
    assert report.resets > 1
    return fuzzer


def frames(device: VirtioDevice, chance: Random) -> Callable[[], None]:
    """A network that has something to receive with every batch."""
    end = device.other_end  # type: ignore[attr-defined] # what subjects.make keeps there

    def send() -> None:
        end.send(0, [bytes(6) + chance.randbytes(chance.choice((8, 54, 1508)))])
        device.poll()  # type: ignore[attr-defined] # it is a Net

    return send


@pytest.mark.parametrize(("device", "transport", "ring"), COMBINATIONS)
def test_nothing_comes_out_and_nothing_is_overwritten(device: str, transport: str, ring: str) -> None:
    report = attack(device, transport, ring, CHAINS // len(COMBINATIONS), seed=1).report
    assert report.wrong > report.chains // 30
    assert report.errors  # the attack is seen


@pytest.mark.slow
@pytest.mark.parametrize(("device", "transport", "ring"), COMBINATIONS)
def test_five_million_chains(device: str, transport: str, ring: str) -> None:
    for seed in range(5):
        attack(device, transport, ring, LONG // len(COMBINATIONS) // 5, seed=100 + seed)


@pytest.mark.usefixtures("often_switched")
@pytest.mark.parametrize("ring", ["split", "packed"])
@pytest.mark.parametrize("device", DEVICES)
def test_descriptors_that_change_while_they_are_used(device: str, ring: str) -> None:
    fuzzer = attack(device, "mmio", ring, max(100, CHAINS // 100), seed=2, racing=True)
    assert fuzzer.racer is not None
    assert fuzzer.racer.changes


# a fuzzer that finds nothing has to be able to find something


class Leaks(Echo):
    """Writes one byte more than it was given."""

    def process_queue(self, index: int) -> None:
        for chain in self.chains(index):
            for descriptor in chain.writable():
                with self.memory.get_slice(descriptor.addr, descriptor.len + 1) as view:
                    view[-1] ^= 0x5A
            self.complete(index, chain, 0)


class WritesInput(Echo):
    """Writes into what it should read."""

    def process_queue(self, index: int) -> None:
        for chain in self.chains(index):
            for descriptor in chain.readable():
                with self.memory.get_slice(descriptor.addr, 1) as view:
                    view[0] ^= 0x5A
            self.complete(index, chain, 0)


class Trusts(Echo):
    """Believes what it reads."""

    def process_queue(self, index: int) -> None:
        for chain in self.chains(index):
            data = chain.reader(self.memory).read()
            assert data[-1] != 0x77
            self.complete(index, chain, 0)


class Divides(Echo):
    """Divides by a field of 32 bits that the guest has chosen, somewhere in its request."""

    at = 8

    def process_queue(self, index: int) -> None:
        for chain in self.chains(index):
            data = chain.reader(self.memory).read()
            if len(data) >= self.at + 4:
                assert 1 // int.from_bytes(data[self.at : self.at + 4], "little") < 2
            self.complete(index, chain, 0)


class DividesFirst(Divides):
    at = 0


class DividesLate(Divides):
    """Its field stands behind others and is not aligned, as in a packed structure."""

    at = 22


class DividesByOneLess(Echo):
    """Divides by a difference that is 0 for a 1."""

    def process_queue(self, index: int) -> None:
        for chain in self.chains(index):
            data = chain.reader(self.memory).read()
            if len(data) >= 8:
                assert 1 // (int.from_bytes(data[4:8], "little") - 1) < 2
            self.complete(index, chain, 0)


class Negates(Echo):
    """Negates a signed field: there is one value that has no opposite."""

    def process_queue(self, index: int) -> None:
        for chain in self.chains(index):
            data = chain.reader(self.memory).read()
            if len(data) >= 8:
                struct.pack("<i", -int.from_bytes(data[4:8], "little", signed=True))
            self.complete(index, chain, 0)


class DividesWhenRight(Echo):
    """Looks at two fields before it divides by a third, which is in a buffer of its own."""

    def sample_request(self, queue: int, chance: Random) -> tuple[list[bytes], list[int]]:
        header = struct.pack("<II", chance.choice((1, 2, 3)), 0xABCD)
        return [header, struct.pack("<QI", chance.getrandbits(64), chance.randrange(1, 1000))], [1]

    def process_queue(self, index: int) -> None:
        for chain in self.chains(index):
            data = chain.reader(self.memory).read()
            if len(data) >= 20 and data[0] == 2 and data[4:8] == b"\xcd\xab\0\0":
                assert 1 // int.from_bytes(data[16:20], "little") < 2
            self.complete(index, chain, 0)


class NegatesLate(Echo):
    """Negates a field of 64 bits behind 48 others, which few of its requests have."""

    def process_queue(self, index: int) -> None:
        for chain in self.chains(index):
            data = chain.reader(self.memory).read()
            if len(data) >= 56:
                struct.pack("<q", -int.from_bytes(data[48:56], "little", signed=True))
            self.complete(index, chain, 0)


class DividesConfig(Echo):
    """Divides by what a driver writes into its configuration space."""

    def write_config(self, offset: int, data: memoryview) -> None:
        if offset == 8 and len(data) == 4:
            assert 1 // int.from_bytes(data, "little") < 2


class Compares(Echo):
    """Fails for one end of a field beside the other end of the next."""

    def process_queue(self, index: int) -> None:
        for chain in self.chains(index):
            data = chain.reader(self.memory).read()
            assert data[:8] != b"\0\0\0\0\xff\xff\xff\xff"
            self.complete(index, chain, 0)


DIVIDING = (
    *(Divides, DividesFirst, DividesLate, DividesByOneLess, DividesWhenRight, DividesConfig),
    *(Negates, NegatesLate, Compares),
)
SEEDS = (0, 1)


@pytest.mark.parametrize("ring", ["split", "packed"])
@pytest.mark.parametrize("kind", DIVIDING)
def test_the_ends_of_a_field_are_tried(kind: type[VirtioDevice], ring: str) -> None:
    for seed in SEEDS:
        with pytest.raises(Finding, match="came out of it"):
            Fuzzer(kind(), "mmio", ring, seed=seed).run(30_000)


@pytest.mark.slow
@pytest.mark.parametrize("transport", ["mmio", "pci"])
@pytest.mark.parametrize("ring", ["split", "packed"])
@pytest.mark.parametrize("kind", DIVIDING)
def test_the_ends_of_a_field_are_tried_whatever_the_seed(kind: type[VirtioDevice], ring: str, transport: str) -> None:
    for seed in range(10):
        with pytest.raises(Finding, match="came out of it"):
            Fuzzer(kind(), transport, ring, seed=seed).run(30_000)


class StaysBroken(Echo):
    """Does not answer any more after a guest's mistake."""

    def process_queue(self, index: int) -> None:
        if not self.errors:
            super().process_queue(index)


class Remembers(Echo):
    """Goes on after a reset with what the driver took back."""

    old: list[int] = []

    def process_queue(self, index: int) -> None:
        for addr in self.old:
            with self.memory.get_slice(addr, 1) as view:
                view[0] ^= 0x5A
        self.old = []
        for chain in self.chains(index):
            self.complete(index, chain, 0)

    def reset(self) -> None:
        self.old = [0x3F000 + 8 * len(self.resets)]
        super().reset()


@pytest.mark.parametrize("kind", [Leaks, WritesInput, Trusts, StaysBroken, Remembers])
@pytest.mark.parametrize("ring", ["split", "packed"])
def test_what_is_wrong_is_found(kind: type[VirtioDevice], ring: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyvmm_virtio.driver.Driver.wait", impatient)
    with pytest.raises(Finding) as found:
        Fuzzer(kind(), "mmio", ring, seed=3).run(3000)
    assert f"{kind.__name__}, mmio, {ring}, seed 3" in str(found.value)


def impatient(self: object, request: object, timeout: float = 0.05) -> object:
    self.wait_until(lambda: request.done, timeout)  # type: ignore[attr-defined]
    return request


def test_the_same_seed_does_the_same() -> None:
    reports = []
    for _ in range(2):
        with Fuzzer(Echo(), "pci", "packed", seed=7) as fuzzer:
            reports.append(repr(fuzzer.run(500)))
    assert reports[0] == reports[1]


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    root = Path(__file__).resolve().parents[2]
    words = [sys.executable, "-m", "pyvmm_virtio.fuzz", *arguments]
    return subprocess.run(words, capture_output=True, text=True, check=False, cwd=root)


def test_the_command() -> None:
    done = command("rng", "--chains", "200", "--transport", "pci", "--ring", "packed")
    assert done.returncode == 0, done.stderr
    assert "pci packed: <Report: 200 chains" in done.stdout
    done = command("tests.hostile.test_virtio_fuzz:Trusts", "--chains", "5000")
    assert done.returncode == 1
    assert "FOUND Trusts, mmio, split, seed 0" in done.stdout
    assert command("toaster").returncode == 2
