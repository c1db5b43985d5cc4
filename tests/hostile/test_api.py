"""An API that is not silently wrong: what was handed out stays true, a wrong name or value is refused where it is
given, and what would wait for ever raises. Every class of pyvmm_kvm and pyvmm_memory is found in the code.
"""

from __future__ import annotations

import inspect
import os
import threading
import time
from contextlib import suppress
from importlib import import_module
from pkgutil import walk_packages
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.kvm.guests import MACHINE, PROGRAMS, Guest

import pyvmm_kvm
import pyvmm_memory
from pyvmm_kvm import (
    BusyError,
    GsiRouter,
    IoIn,
    IoOut,
    IrqRouting,
    Kvm,
    KvmError,
    MmioRead,
    MmioWrite,
    RunControl,
    VcpuExit,
    VcpuFd,
)
from pyvmm_kvm.exits.base import RareExit
from pyvmm_kvm.near import Exact
from pyvmm_kvm.struct import Struct
from pyvmm_memory import GuestMemoryAtomic, GuestMemoryMmap, GuestRegionMmap, IommuMemory, MmapRegion, Permissions
from pyvmm_memory.guest_memory import GuestMemory

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

# their members are made by the class, which cannot have slots; none of them is a structure
ENUMS = {"Advice", "Cap", "MmapXenFlags", "Ordering", "Policy"}


def classes() -> Iterator[type]:
    """Every class that is defined in the two packages."""
    for package in (pyvmm_kvm, pyvmm_memory):
        for found in walk_packages(package.__path__, f"{package.__name__}."):
            if found.name.endswith("__main__"):
                continue
            for kind in vars(import_module(found.name)).values():
                if inspect.isclass(kind) and kind.__module__ == found.name:
                    yield kind


def kinds_of(base: type) -> list[Any]:
    return [kind for kind in dict.fromkeys(classes()) if issubclass(kind, base)]


def named(kind: type) -> str:
    return f"{kind.__module__.split('.', 1)[1]}.{kind.__name__}"


# names


def test_nothing_takes_an_attribute_that_it_has_not() -> None:
    loose = {kind.__name__ for kind in classes() if kind.__dictoffset__ and not issubclass(kind, BaseException)}
    assert loose <= ENUMS, "give them __slots__: a misspelt name is taken otherwise"


@pytest.mark.parametrize("kind", [kind for kind in kinds_of(Struct) if kind.field_names], ids=named)
def test_structures_know_their_fields(kind: type[Struct]) -> None:
    made = kind()
    for name in kind.field_names:
        for wrong in (f"{name}x", name[0] + name, name + name[-1]):
            if wrong in kind.field_names:
                continue
            with pytest.raises(AttributeError, match=wrong) as caught:
                setattr(made, wrong, 0)
            assert name in str(caught.value), "it says which name is near"
            with pytest.raises(AttributeError, match=wrong):
                getattr(made, wrong)
            with pytest.raises(TypeError, match=wrong):
                kind(**{wrong: 0})
        setattr(made, name, getattr(made, name))


@pytest.mark.parametrize("kind", [kind for kind in kinds_of(Exact) if kind is not Exact], ids=named)
def test_values_know_their_fields(kind: type[Exact]) -> None:
    made: Any = kind.__new__(kind)
    with pytest.raises(AttributeError, match="nothing_like_it"):
        made.nothing_like_it = 1
    with pytest.raises(AttributeError, match="nothing_like_it"):
        made.nothing_like_it  # noqa: B018 - it is refused


def example_of(kind: type[VcpuExit]) -> VcpuExit | None:
    if issubclass(kind, RareExit):
        return kind.decode(memoryview(bytearray(256)))
    wanted = [name for name in inspect.signature(kind).parameters if name not in ("args", "kwargs")]
    values = {"data": memoryview(bytearray(4)), "raw": bytes(256), "size": 2}
    return kind(*(values.get(name, 0) for name in wanted))


@pytest.mark.parametrize("kind", [kind for kind in kinds_of(VcpuExit) if not kind.__name__.startswith("_")], ids=named)
def test_exits_take_answers_and_nothing_else(kind: type[VcpuExit]) -> None:
    if kind in (VcpuExit, RareExit):
        return
    made = example_of(kind)
    before = repr(made)
    for name in [name for name in dir(kind) if not name.startswith("__")]:
        if name in kind.ANSWERS:
            continue
        with pytest.raises(AttributeError, match=name):
            setattr(made, name, 0)
    with pytest.raises(AttributeError, match="dta"):
        made.dta = b""  # type: ignore[union-attr]
    assert repr(made) == before
    for name in kind.ANSWERS:
        answer: Any = 1 if issubclass(kind, RareExit) else b"\1\2\3\4"
        setattr(made, name, answer)
        assert getattr(made, name) == answer
        for wrong in ("1", None, b"\1\2\3"):
            with pytest.raises((TypeError, ValueError)):
                setattr(made, name, wrong)


# what was handed out


@pytest.fixture
def guests() -> Iterator[Callable[[str | bytes], Guest]]:
    made: list[Guest] = []
    with Kvm() as kvm:

        def make(program: str | bytes) -> Guest:
            made.append(Guest(kvm, PROGRAMS[program] if isinstance(program, str) else program))
            return made[-1]

        yield make
        for guest in made:
            guest.close()


KEEPS: dict[str, Callable[[Any], Any]] = {
    "exit": lambda exit_: exit_,
    "data": lambda exit_: exit_.data,
    "a part": lambda exit_: exit_.data[:],
    "another view": lambda exit_: memoryview(exit_.data),
    "both": lambda exit_: (exit_, exit_.data),
}


def value_of(kept: Any) -> bytes:  # noqa: ANN401 - what KEEPS gives
    if isinstance(kept, tuple):
        assert bytes(kept[0].data) == bytes(kept[1])
        kept = kept[1]
    return bytes(getattr(kept, "data", kept))


@pytest.mark.kvm
@pytest.mark.parametrize("how", KEEPS)
def test_what_is_kept_stays(guests: Callable[[str], Guest], how: str) -> None:
    vcpu = guests("count").vcpu
    kept, said = [], []
    for _ in range(300):
        exit_ = vcpu.run()
        assert isinstance(exit_, MmioWrite)
        kept.append(KEEPS[how](exit_))
        said.append(bytes(exit_.data))
    assert len(set(said)) > 200
    assert [value_of(each) for each in kept] == said


@pytest.mark.kvm
@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from([*KEEPS, "nothing", "release"]), st.integers(0, 6)), max_size=60))
def test_whatever_is_kept_for_however_long(steps: list[tuple[str, int]]) -> None:
    with Kvm() as kvm:
        guest = Guest(kvm, PROGRAMS["count"])
        kept: list[tuple[Any, bytes]] = []
        for count, (how, drop) in enumerate(steps, 1):
            exit_ = guest.vcpu.run()
            assert isinstance(exit_, MmioWrite)
            said = bytes(exit_.data)
            assert int.from_bytes(said, "little") == count
            if how in KEEPS:
                kept.append((KEEPS[how](exit_), said))
            elif how == "release":
                with pytest.raises(BufferError):
                    exit_.data.release()
            if drop < len(kept):
                del kept[drop]
            assert all(value_of(each) == was for each, was in kept)
        guest.close()


@pytest.mark.kvm
def test_an_answer_is_for_its_own_question(guests: Callable[[str], Guest]) -> None:
    guest = guests("copy")
    asked = guest.vcpu.run()
    assert isinstance(asked, MmioRead)
    view = asked.data
    with pytest.raises(ValueError, match="2 bytes"):
        asked.data = b"\1"  # type: ignore[assignment]
    asked.data = b"\x34\x12"  # type: ignore[assignment]
    written = guest.vcpu.run()
    view[:] = b"\xff\xff"
    assert isinstance(written, MmioWrite)
    assert bytes(written.data) == b"\x34\x12"
    with pytest.raises(AttributeError, match="cannot be set"):
        written.data = b"\0\0"  # type: ignore[assignment]


@pytest.mark.kvm
@pytest.mark.skipif(MACHINE != "x86_64", reason="ports are x86's")
def test_ports_and_strings_are_the_same(guests: Callable[[bytes], Guest]) -> None:
    # mov al,'H'; out 0x10,al; mov al,'i'; out 0x10,al; in al,0x11; out 0x10,al
    # mov cx,3; mov di,0x800; mov dx,0x12; cld; rep insb; mov si,0x800; mov cx,3; es rep outsb; hlt
    guest = guests(bytes.fromhex("b048e610 b069e610 e411e610 b90300 bf0008 ba1200 fc f36c be0008 b90300 26f36e f4"))
    run: Any = guest.vcpu.run
    kept = []
    for _ in range(2):
        kept.append(run())
    asked = run()
    assert isinstance(asked, IoIn)
    asked.data = b"!"  # type: ignore[assignment]
    kept.append(run())
    string: Any = run()
    assert isinstance(string, IoIn)
    answers = [b"abc"[at : at + len(string.data)] for at in range(0, 3, len(string.data))]
    for answer in answers:
        string.data = answer  # type: ignore[assignment]
        last, string = string, run()
        assert bytes(last.data) == answer
    said = b""
    while isinstance(string, IoOut):
        kept.append(string)
        said += bytes(string.data)
        string = run()
    assert said == b"abc"
    assert b"".join(bytes(each.data) for each in kept) == b"Hi!abc"


@pytest.mark.kvm
def test_an_answer_in_the_run_page_itself_counts(guests: Callable[[str], Guest]) -> None:
    from pyvmm_kvm._kvm import lib

    guest = guests("copy")
    guest.vcpu.run()
    at = lib.PYVMM_RUN_MMIO_DATA
    guest.vcpu.get_kvm_run()[at : at + 2] = b"\x77\x66"
    written = guest.vcpu.run()
    assert bytes(written.data) == b"\x77\x66"


# what would wait for ever


@pytest.mark.kvm
def test_no_call_of_a_vcpu_waits_for_its_run(guests: Callable[[str], Guest]) -> None:
    vcpu = guests("loop").vcpu
    control = RunControl([vcpu], lambda *_: False)
    with control:
        control.start()
        while not vcpu._state.running:
            time.sleep(0.001)
        answers: dict[str, object] = {}

        def call(name: str) -> None:
            try:
                method = getattr(vcpu, name)
                wanted = [each for each in inspect.signature(method).parameters.values() if each.default is each.empty]
                answers[name] = method(*([0] * sum(each.kind is not each.VAR_POSITIONAL for each in wanted)))
            except BaseException as error:  # noqa: BLE001 - looked at below
                answers[name] = error

        # those that mean an end, a kick or nothing but the run page
        names = [name for name in dir(VcpuFd) if not name.startswith("_") and callable(getattr(VcpuFd, name))]
        for name in sorted(set(names) - {"set_kvm_immediate_exit", "Config"}):
            thread = threading.Thread(target=call, args=(name,), daemon=True)
            thread.start()
            thread.join(10)
            assert name in answers, f"{name} waits"
        busy = {name for name, answer in answers.items() if isinstance(answer, BusyError)}
        assert {"run", "close", "get_mp_state", "get_one_reg", "set_mp_state"} <= busy
        with pytest.raises(BusyError, match="running in another thread"):
            vcpu.get_mp_state()
        other = RunControl([vcpu], lambda *_: True)
        other.start()
        with pytest.raises(BusyError):
            other.join(10)
    assert vcpu.get_mp_state() is not None, "once it has stopped"


@pytest.mark.kvm
def test_calls_and_runs_of_many_threads_never_wait_for_each_other(guests: Callable[[str], Guest]) -> None:
    vcpu = guests("count").vcpu
    end, told = time.monotonic() + 0.5, [0, 0]

    def ask() -> None:
        while time.monotonic() < end:
            try:
                vcpu.get_mp_state()
                told[0] += 1
            except BusyError:
                told[1] += 1

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    while time.monotonic() < end:
        vcpu.run()
    for thread in threads:
        thread.join(10)
        assert not thread.is_alive()
    assert told[0]


@pytest.mark.kvm
def test_a_handler_does_not_wait_for_itself(guests: Callable[[str], Guest]) -> None:
    def handler(*_: object) -> bool:
        control.join()
        return True

    control = RunControl([guests("count").vcpu], handler)
    control.start()
    with pytest.raises(RuntimeError, match="cannot join"):
        control.join(10)


def test_the_right_to_replace_memory_is_no_lock() -> None:
    with GuestMemoryMmap.from_ranges([(0, 0x1000)]) as memory:
        cell = GuestMemoryAtomic(memory)
        with cell.lock() as guard:
            with pytest.raises(pyvmm_memory.MemoryBusy, match="already"), cell.lock():
                pass
            seen: list[object] = []
            thread = threading.Thread(target=lambda: seen.append((cell.memory(), cell.generation)))
            thread.start()
            thread.join(10)
            assert seen
            guard.replace(memory)
        with cell.lock():
            pass


class Reentrant:
    """A VM that looks at its router whenever it is called, in this thread and in another."""

    router: GsiRouter

    def __init__(self) -> None:
        self.calls = 0

    def _look(self, *_: object) -> None:
        done = []

        def look() -> None:
            done.append((self.router.table(), self.router.attached, repr(self.router)))

        thread = threading.Thread(target=look, daemon=True)
        thread.start()
        thread.join(10)
        look()
        assert len(done) == 2, "a lock is held"
        with pytest.raises(RuntimeError, match="within itself"):
            self.router.detach(99)
        self.calls += 1

    set_gsi_routing = register_irqfd = unregister_irqfd = _look


class Message:
    address, data, devid = 0xFEE00000, 0x41, 0


def test_a_router_holds_no_lock_while_it_calls() -> None:
    vm: Any = Reentrant()
    vm.router = router = GsiRouter(vm, IrqRouting())
    router.attach(5, Message())
    router.detach(5)
    router.route(3, Message())
    assert vm.calls == 4


# wrong values


def open_files() -> set[str]:
    """Return what this process has open, by name."""
    names = set()
    for fd in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # the one of the listing itself, and those of others
            names.add(os.readlink(f"/proc/self/fd/{fd}"))
    return names


@pytest.mark.kvm
def test_descriptors_of_something_else_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("text\n")
    for path in (str(tmp_path / "text"), "/dev/null", "/dev/zero"):
        with pytest.raises(KvmError, match="not KVM's device"):
            Kvm(path)
    # not by their number, which threads of other tests change, but by what nobody else opens
    assert str(tmp_path / "text") not in open_files()
    with Kvm() as kvm, kvm.create_vm() as vm, open(tmp_path / "text") as file:
        for fd in (file.fileno(), kvm.fileno(), 1 << 20):
            with pytest.raises(ValueError, match="descriptor"):
                kvm.create_vmfd_from_rawfd(fd)
            with pytest.raises(ValueError, match="descriptor"):
                vm.create_vcpu_from_rawfd(fd)


@pytest.mark.kvm
def test_a_control_has_vcpus_and_a_handler(guests: Callable[[str], Guest]) -> None:
    vcpu: Any = guests("loop").vcpu
    with pytest.raises(ValueError, match="at least one"):
        RunControl([], lambda *_: True)
    with pytest.raises(ValueError, match="twice"):
        RunControl([vcpu, vcpu], lambda *_: True)
    with pytest.raises(TypeError, match="handler"):
        RunControl([vcpu], None)  # type: ignore[arg-type]
    with pytest.raises((TypeError, AttributeError)):
        RunControl([5], lambda *_: True)  # type: ignore[list-item]


# guest memory


def memories() -> dict[str, Callable[[], Any]]:
    """One of each kind of guest memory, with a region at 0 that may be read only."""
    import mmap

    def region() -> GuestRegionMmap:
        mapping = MmapRegion.build(None, 0x2000, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        return GuestRegionMmap(0, 0x2000, mapping)

    def behind(enabled: bool) -> IommuMemory:
        iommu = pyvmm_memory.Iommu()
        iommu.iotlb.set_mapping(0, 0, 0x2000, Permissions.ReadWrite)
        return IommuMemory(GuestMemoryMmap([region()]), iommu, enabled)

    def forbidden() -> IommuMemory:
        iommu = pyvmm_memory.Iommu()
        iommu.iotlb.set_mapping(0, 0, 0x2000, Permissions.Read)
        return IommuMemory(GuestMemoryMmap.from_ranges([(0, 0x2000)]), iommu)

    return {
        "GuestMemoryMmap": lambda: GuestMemoryMmap([region()]),
        "GuestRegionCollection": lambda: pyvmm_memory.GuestRegionCollection([region()]),
        "IommuMemory": lambda: behind(True),
        "IommuMemory, off": lambda: behind(False),
        "IommuMemory, forbidden": forbidden,
    }


def test_every_kind_of_guest_memory_is_here() -> None:
    kinds = {kind.__name__ for kind in kinds_of(GuestMemory)} - {"GuestMemory"}
    assert kinds == {name.split(",")[0] for name in memories()}
    assert all(isinstance(make().generation, int) for make in memories().values())


WRITES: dict[str, Callable[[Any], Any]] = {
    "write": lambda memory: memory.write(b"12", 0),
    "write_slice": lambda memory: memory.write_slice(b"123", 0),
    "write_obj": lambda memory: memory.write_obj(pyvmm_memory.Le32(1), 0),
    "write_u8": lambda memory: memory.write_u8(1, 0),
    "write_u16": lambda memory: memory.write_u16(1, 0),
    "write_u32": lambda memory: memory.write_u32(1, 0),
    "write_u64": lambda memory: memory.write_u64(1, 0),
    "store": lambda memory: memory.store(1, 0, 4),
    "fill_zero": lambda memory: memory.fill_zero(0, 8),
    "read_volatile_from": lambda memory: memory.read_volatile_from(0, b"12", 2),
    "read_exact_volatile_from": lambda memory: memory.read_exact_volatile_from(0, b"12", 2),
    "__setitem__": lambda memory: memory.__setitem__(slice(0, 2), b"12"),
    "get_slice": lambda memory: memory.get_slice(0, 4, Permissions.ReadWrite),
    "get_slices": lambda memory: memory.get_slices(0, 4, Permissions.Write),
    "get_volatile_slice": lambda memory: memory.get_volatile_slice(0, 4, Permissions.ReadWrite),
    "get_volatile_slices": lambda memory: memory.get_volatile_slices(0, 4, Permissions.Write),
}


def test_every_way_to_write_is_here() -> None:
    ways = {name for name in dir(GuestMemoryMmap) if name.startswith(("write_", "store", "fill", "get_", "read_exact"))}
    assert ways - set(WRITES) <= {"write_all_volatile_to", "write_volatile_to", "get_host_address"}


@pytest.mark.parametrize("make", memories().values(), ids=memories())
@pytest.mark.parametrize("way", WRITES)
def test_what_may_not_be_written_says_so(make: Callable[[], Any], way: str) -> None:
    memory = make()
    with pytest.raises((pyvmm_memory.ReadOnlyMemory, pyvmm_memory.CannotResolve)) as caught:
        WRITES[way](memory)
    assert not isinstance(caught.value, TypeError)
    assert memory.check_range(0, 0x2000, Permissions.Read)
    assert not memory.check_range(0, 8, Permissions.Write)
    assert memory.read_bytes(0, 4) == bytes(4)
    with memory.get_slice(0, 4) as view:
        assert view.readonly, "as it is mapped"
    with memory.get_slice(0, 4, Permissions.Read) as view:
        assert bytes(view) == bytes(4)
    memory.close()


def test_what_was_plugged_in_without_a_bitmap_is_dirty_as_a_whole() -> None:
    with GuestMemoryMmap.from_ranges([(0, 0x2000)], bitmap=pyvmm_memory.AtomicBitmap) as first:
        more = first.insert_region(GuestRegionMmap(0x10000, 0x3000))
        assert more.dirty_tracking
        more.write_u8(1, 0x1000)
        more.write_u8(1, 0x11000)
        assert pyvmm_memory.dirty_ranges(more) == [(0x1000, 0x1000), (0x10000, 0x3000)]
        more.close()
