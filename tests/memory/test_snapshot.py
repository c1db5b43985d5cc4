"""Saving guest memory and getting it back: holes, changes, laziness, damage."""

import json
import mmap
import os
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pyvmm_memory as pm
from pyvmm_memory import Snapshot, snapshot

MIB = 1 << 20
PAGE = mmap.PAGESIZE
LAYOUT = [(0, 3 * MIB), (3 * MIB, MIB), (1 << 32, 64 * MIB)]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    with pm.GuestMemoryMmap.from_ranges(LAYOUT) as memory:
        fill(memory)
        assert 0 < pm.save(memory, tmp_path / "memory") < 3 * MIB
    return tmp_path / "memory"


def fill(memory: pm.GuestMemoryMmap) -> None:
    memory.write_slice(b"begin", 0)
    memory.write_slice(b"border", 3 * MIB - 3)
    memory.write_slice(b"x" * MIB, (1 << 32) + 32 * MIB + 5)
    memory.write_u8(0, MIB)


def check(memory: pm.GuestMemoryMmap) -> None:
    with pm.GuestMemoryMmap.from_ranges(LAYOUT) as expected:
        fill(expected)
        for region, other in zip(memory, expected, strict=True):
            with region.view[:] as mine, other.view[:] as theirs:
                assert bytes(mine) == bytes(theirs)


def test_holes_stay_holes(saved: Path) -> None:
    status = saved.stat()
    assert status.st_size > 68 * MIB
    assert status.st_blocks * 512 < 3 * MIB
    assert list(saved.parent.iterdir()) == [saved]


def test_restored_memory_is_the_same_and_as_sparse(saved: Path) -> None:
    seen: list[tuple[int, int]] = []
    with Snapshot(saved) as file:
        assert "all of 0x4400000 bytes" in repr(file)
        memory = file.restore(progress=lambda done, total: seen.append((done, total)))
    with memory:
        check(memory)
    assert seen


def test_lazily_restored_memory_is_the_same(saved: Path) -> None:
    with Snapshot(saved) as file:
        try:
            memory, faults = file.restore_lazily()
        except pm.HostRefused as error:
            pytest.skip(str(error))
    with memory:
        assert memory.read_u8(0) == ord("b")
        assert sum(fault.counters()["bytes"] for fault in faults) < MIB
        check(memory)
        for fault in faults:
            fault.check()


def test_saving_lazy_memory_brings_in_what_nobody_touched(saved: Path, tmp_path: Path) -> None:
    with Snapshot(saved) as file:
        try:
            memory, _ = file.restore_lazily()
        except pm.HostRefused as error:
            pytest.skip(str(error))
    with memory:
        assert "lazy anonymous" in repr(memory)
        assert memory.search(b"border") == [3 * MIB - 3]
        pm.save(memory, tmp_path / "again")
    with Snapshot(tmp_path / "again") as file, file.restore() as again:
        check(again)


def test_files_that_cannot_say_where_their_holes_are() -> None:
    from pyvmm_memory.pagemap import data_of

    reader, writer = os.pipe()
    assert list(data_of(reader, 0x1000, 0x2000)) == [(0, 0x2000)]
    os.close(reader)
    os.close(writer)


def test_changes_on_top_of_the_whole(saved: Path, tmp_path: Path) -> None:
    with Snapshot(saved) as file:
        memory = file.restore(bitmap=pm.AtomicBitmap)
    pm.dirty_ranges(memory)
    memory.write_slice(b"changed", 3 * MIB - 3)
    memory.fill_zero((1 << 32) + 32 * MIB, 0x2000)
    changes = pm.dirty_ranges(memory)
    assert changes == [(3 * MIB - 0x1000, 0x1000), (3 * MIB, 0x1000), ((1 << 32) + 32 * MIB, 0x2000)]
    assert pm.dirty_ranges(memory) == []
    seen: list[tuple[int, int]] = []
    pm.save(memory, tmp_path / "changes", dirty=[*changes, (5, 0)], progress=lambda *each: seen.append(each))
    assert (tmp_path / "changes").stat().st_blocks * 512 < MIB
    assert seen
    with Snapshot(saved) as whole, Snapshot(tmp_path / "changes") as later, whole.restore() as again:
        assert "2 changed parts" in repr(later)
        later.load(again)
        for region, other in zip(memory, again, strict=True):
            with region.view[:] as mine, other.view[:] as theirs:
                assert bytes(mine) == bytes(theirs)
        with pytest.raises(pm.InvalidSnapshot, match="changes only"):
            later.restore()
        with pytest.raises(pm.InvalidSnapshot, match="changes only"):
            later.restore_lazily()
    with pytest.raises(pm.InvalidGuestAddress):
        pm.save(memory, tmp_path / "more", dirty=[(1 << 40, 1)])
    assert not (tmp_path / "more").exists()
    memory.close()


@pytest.mark.parametrize("shared", [True, False])
def test_memory_in_a_file(tmp_path: Path, shared: bool) -> None:
    (tmp_path / "ram").write_bytes(b"")
    os.truncate(tmp_path / "ram", 4 * MIB)
    with (tmp_path / "ram").open("r+b") as file:
        place = pm.FileOffset(file)
        mapping = pm.MmapRegion.from_file(place, 4 * MIB) if shared else pm.MmapRegion.build(place, 4 * MIB, 3, 2)
        with pm.GuestMemoryMmap([pm.GuestRegionMmap.new(mapping, 0)]) as memory:
            memory.write_slice(b"kept", 2 * MIB)
            assert 4 <= pm.save(memory, tmp_path / "saved") <= 2 * MIB
            with Snapshot(tmp_path / "saved") as again, again.restore() as other:
                assert other.search(b"kept") == [2 * MIB]


def test_a_failed_save_leaves_what_was_there(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def full(fd: int, data: bytes, at: int) -> int:
        raise OSError(28, "No space left on device")

    with pm.GuestMemoryMmap.from_ranges(LAYOUT) as memory:
        fill(memory)
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            pm.save(memory, saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_files_that_are_no_snapshots(saved: Path, tmp_path: Path) -> None:
    header = saved.read_bytes().partition(b"\n")[0]
    bad = tmp_path / "bad"
    for text in (b"", b"{}\n", b"\xff\xfe\n", b"[1]\n", header.replace(b'"version": 1', b'"version": 9') + b"\n"):
        bad.write_bytes(text)
        with pytest.raises(pm.InvalidSnapshot):
            Snapshot(bad)
    bad.write_bytes(header + b"\n")
    with pytest.raises(pm.InvalidSnapshot, match="shorter"):
        Snapshot(bad)
    fields = json.loads(header)
    fields["regions"][0]["offset"] = -4096
    bad.write_bytes(json.dumps(fields).encode() + b"\n" + bytes(100))
    os.truncate(bad, 1 << 30)
    with pytest.raises(pm.InvalidSnapshot):
        Snapshot(bad)
    other = pm.GuestMemoryMmap.from_ranges([(0, MIB)])
    with Snapshot(saved) as file, other, pytest.raises(pm.InvalidSnapshot, match="other regions"):
        file.load(other)


def test_a_snapshot_that_shrinks_while_it_is_read(saved: Path) -> None:
    with Snapshot(saved) as file, pm.GuestMemoryMmap.from_ranges([(0, MIB)]) as memory:
        os.truncate(saved, 0x1000)
        (region,) = memory
        with pytest.raises(pm.PartialBuffer):
            snapshot._read(region, file._file.fileno(), 0x1000, 0, 0x1000)


@settings(max_examples=60, deadline=None)
@given(st.sets(st.integers(0, 15)), st.sets(st.integers(0, 15)), st.sets(st.integers(0, 15)))
def test_memory_that_was_used_is_as_saved_too(saved: set[int], zeros: set[int], used: set[int]) -> None:
    """What the file has no bytes of is zeros, whatever was there, and nothing else is written."""
    ranges = [(0, 8 * PAGE), (1 << 32, 8 * PAGE)]

    def place(page: int) -> int:
        return page % 8 * PAGE + (page >> 3 << 32)

    with tempfile.TemporaryDirectory() as folder, pm.GuestMemoryMmap.from_ranges(ranges) as memory:
        for page in saved | zeros:
            memory.write_slice(b"s" * PAGE if page in saved else bytes(PAGE), place(page))
        pm.save(memory, f"{folder}/memory")
        with (
            pm.GuestMemoryMmap.from_ranges(ranges, bitmap=pm.AtomicBitmap) as other,
            Snapshot(f"{folder}/memory") as file,
        ):
            for page in used:
                other.write_slice(b"u" * PAGE, place(page))
            pm.dirty_ranges(other)
            file.load(other)
            changed = pm.dirty_ranges(other)
            for page in range(16):
                assert other.read_bytes(place(page), PAGE) == memory.read_bytes(place(page), PAGE)
            assert sum(length for _, length in changed) <= PAGE * len(saved | zeros | used)


def test_headers_that_say_something_else(saved: Path, tmp_path: Path) -> None:
    with saved.open("rb") as whole:
        header = whole.readline()
    good = json.loads(header)
    first = good["regions"][0]
    wrong = [
        {**good, "version": True},
        {**good, "version": 1.0},
        {**good, "more": 1},
        {**good, "regions": [{**first, "more": 1}, *good["regions"][1:]]},
        *({**good, "parts": parts} for parts in ([[4 * MIB - 1, 2]], [[5 * MIB, 1]], [[(1 << 32) + 65 * MIB, 1]])),
    ]
    texts = [json.dumps(each).encode() for each in wrong] + [header.replace(b"{", b'{"version": 1, ', 1)]
    for text in texts:
        (tmp_path / "wrong").write_bytes(text + b"\n")
        os.truncate(tmp_path / "wrong", 80 * MIB)
        with pytest.raises(pm.InvalidSnapshot):
            Snapshot(tmp_path / "wrong")
    (tmp_path / "right").write_bytes(json.dumps({**good, "parts": [[0, 4 * MIB]]}).encode() + b"\n")
    os.truncate(tmp_path / "right", 80 * MIB)
    with Snapshot(tmp_path / "right") as file:
        assert file.parts == [(0, 4 * MIB)]
