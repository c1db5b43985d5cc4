"""ELF files that others built, as pyelftools reads them: every tenth of /usr/bin, with --slow every one."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pyvmm_loader import inspect
from pyvmm_loader.images.elf import ET_DYN, ElfFile
from pyvmm_loader.images.source import Source

if TYPE_CHECKING:
    from collections.abc import Iterator

elffile = pytest.importorskip("elftools.elf.elffile", reason="pyelftools is not installed")
enums = pytest.importorskip("elftools.elf.enums")
NOTE_TYPES = enums.ENUM_NOTE_N_TYPE


def binaries() -> Iterator[Path]:
    for path in sorted(Path("/usr/bin").iterdir()):
        if path.is_file() and not path.is_symlink() and os.access(path, os.R_OK):
            with path.open("rb") as file:
                if file.read(4) == b"\x7fELF":
                    yield path


def number(value: object, names: dict[str, int]) -> int:
    """Undo pyelftools' naming of constants."""
    return names[value] if isinstance(value, str) else int(str(value))


def expected_notes(segments: list[Any]) -> list[tuple[bytes, int, bytes]]:
    return [
        (note["n_name"].encode(), number(note["n_type"], NOTE_TYPES), note["n_descdata"])
        for segment in segments
        if segment["p_type"] == "PT_NOTE"
        for note in segment.iter_notes()
    ]


def compare(path: Path) -> None:
    with path.open("rb") as file, Source(path) as source:
        peer = elffile.ELFFile(file)
        ours = ElfFile(source.view, str(path))
        head = peer.header
        segments = list(peer.iter_segments())
        assert ours.bits == peer.elfclass
        assert ours.machine == number(head["e_machine"], enums.ENUM_E_MACHINE)
        assert ours.kind == number(head["e_type"], enums.ENUM_E_TYPE)
        assert ours.entry == head["e_entry"]
        assert [
            (s.kind, s.offset, s.vaddr, s.paddr, s.filesz, s.memsz, s.align) for s in ours.headers
        ] == [
            (
                number(s["p_type"], enums.ENUM_P_TYPE_BASE),
                s["p_offset"], s["p_vaddr"], s["p_paddr"], s["p_filesz"], s["p_memsz"], s["p_align"],
            )
            for s in segments
        ]  # fmt: skip
        loaded = [s for s in segments if s["p_type"] == "PT_LOAD" and s["p_memsz"]]
        assert [(s.paddr, s.memsz) for s in ours.segments] == [(s["p_paddr"], s["p_memsz"]) for s in loaded]
        for segment, other in zip(ours.segments, loaded, strict=True):
            data = source.view[segment.offset : segment.offset + segment.filesz]
            assert data == other.data()
            data.release()
        notes = []
        for owner, kind, description in ours.notes():
            notes.append((owner, kind, bytes(description)))
            description.release()
        assert notes == expected_notes(segments)
        assert ours.pvh_entry() is None
    seen = inspect(path)
    assert (seen["format"], seen["entry"], seen["type"]) == (f"elf{ours.bits}", ours.entry, ours.kind)
    assert (seen["segments"], seen["relocatable"]) == (len(loaded), ours.kind == ET_DYN)
    assert not seen["entries"] or "linux64" in seen["entries"], "static programs are not told from kernels"


@pytest.mark.parametrize(
    "step", [pytest.param(10, id="every tenth"), pytest.param(1, marks=pytest.mark.slow, id="every one")]
)
def test_programs_of_usr_bin_as_pyelftools_reads_them(step: int) -> None:
    paths = list(binaries())[::step]
    if not paths:
        pytest.skip("/usr/bin holds no ELF file")
    for path in paths:
        compare(path)
