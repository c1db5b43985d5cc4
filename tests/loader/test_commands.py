"""The command line on files of every kind, most of them wrong: one line that says why, and never a wait."""

from __future__ import annotations

import gzip
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.loader.images import arm64, bzimage, elf, firmware

from pyvmm_loader.__main__ import main

if TYPE_CHECKING:
    from collections.abc import Callable

    Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: str | Path) -> tuple[int, str, str]:
        status = main([str(word) for word in words])
        out, err = capsys.readouterr()
        return status, out, err

    return run


@pytest.mark.parametrize("words", [["inspect"], ["plan"], ["extract"], ["initramfs", "--list"]])
def test_what_is_no_regular_file_is_refused_at_once(words: list[str], tmp_path: Path, command: Command) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "empty").touch()
    rest = [tmp_path / "output"] if words == ["extract"] else []
    for path, reason in (
        (tmp_path / "fifo", "no regular file"),
        (Path("/dev/zero"), "no regular file"),
        (tmp_path, "directory"),
        (tmp_path / "empty", "empty"),
        (tmp_path / "missing", "No such file"),
        (tmp_path / "two\nlines", "two lines: No such file"),
    ):
        status, out, err = command(*words, path, *rest)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert reason in err
    assert not (tmp_path / "output").exists()


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"#!/bin/sh\n" * 100, "text"), (b"\1\2\3", "unknown"), (bytes(9000), "unknown"), (b"MZ" + bytes(9000), "efi")],
)
def test_a_file_of_no_known_format_is_an_object_too(
    content: bytes, kind: str, tmp_path: Path, command: Command
) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    status, out, err = command("inspect", "--json", path)
    found = json.loads(out)
    assert (status, err) == (1, f"pyvmm_loader: {found['error']}\n")
    assert (found["format"], found["kind"], found["arch"], found["entries"]) == ("unknown", kind, None, [])
    assert command("inspect", path) == (1, "", err)


def test_a_damaged_image_is_named_only(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "bzImage"
    path.write_bytes(bzimage(syssize=1 << 20))
    status, out, err = command("inspect", "--json", path)
    assert (status, out) == (1, "")
    assert "the kernel ends at" in err


def test_a_name_that_is_no_unicode_is_shown(tmp_path: Path, command: Command) -> None:
    path = os.fsdecode(bytes(tmp_path) + b"/\xff")
    Path(path).write_bytes(elf())
    status, out, _ = command("inspect", path)
    assert (status, "\\udcff" in out) == (0, True)
    assert json.loads(command("inspect", "--json", path)[1])["path"] == path


def test_plans_of_what_takes_no_command_line(tmp_path: Path, command: Command) -> None:
    rom, flat = tmp_path / "bios.bin", tmp_path / "flat"
    rom.write_bytes(firmware())
    flat.write_bytes(b"\xf4")
    assert "kernel firmware" in command("plan", rom)[1]
    assert "0x0000100000..0x0000100001" in command("plan", flat, "--entry", "flat32")[1]
    assert command("plan", flat, "--entry", "flat32", "--load-address", "-1")[0] == 1
    assert command("plan", flat, "--entry", "flat32", "--cmdline", "quiet")[2].endswith("omit them\n")


def test_processors_are_counted_by_the_tables_of_their_machine(tmp_path: Path, command: Command) -> None:
    pc, arm = tmp_path / "vmlinux", tmp_path / "Image"
    pc.write_bytes(elf())
    arm.write_bytes(arm64())
    assert "MP table" in command("plan", pc, "--vcpus", "256")[2]
    assert command("plan", pc, "--vcpus", "256", "--tables", "acpi")[0] == 0
    for vcpus, status in (("0", 1), ("100", 0), ("100000", 1)):
        found, _, err = command("plan", arm, "--vcpus", vcpus)
        assert (found, "MP table" in err) == (status, False)


def test_files_beside_the_kernel_are_named(tmp_path: Path, command: Command) -> None:
    kernel, garbage = tmp_path / "vmlinux", tmp_path / "garbage"
    kernel.write_bytes(elf())
    garbage.write_bytes(b"\xff\xfe")
    for words in (
        ["--bootconfig", garbage],
        ["--initrd", tmp_path / "missing"],
        ["--svg", tmp_path / "missing" / "plan.svg"],
        ["--module", tmp_path / "missing,words"],
    ):
        status, out, err = command("plan", kernel, *words)
        assert (status, out, err.count("\n")) == (1, "", 1)
        assert str(words[1]).removesuffix(",words") in err
    status, _, err = command("initramfs", "--list", garbage)
    assert (status, f"{garbage}: no archive" in err) == (1, True)


def test_extract_takes_a_limit(tmp_path: Path, command: Command) -> None:
    packed, output = tmp_path / "kernel.gz", tmp_path / "kernel"
    packed.write_bytes(gzip.compress(bytes(20 << 20)))
    status, _, err = command("extract", packed, output)
    assert (status, output.exists(), "raise the limit" in err) == (1, False, True)
    assert command("extract", packed, output, "--limit", "20M")[0] == 0
    assert output.stat().st_size == 20 << 20
    assert command("extract", packed, output, "--limit", "19M")[0] == 1


def test_a_packed_folder_is_whole(tmp_path: Path, command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, output = tmp_path / "folder", tmp_path / "initramfs.cpio"
    folder.mkdir()
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(str(folder / "socket"))
    os.symlink(b"\xff", folder / "link")
    (folder / "two\nlines").touch()
    assert command("initramfs", folder, output)[0] == 0
    listed = command("initramfs", "--list", output)[1].splitlines()
    assert [line.split(maxsplit=4)[4] for line in listed] == ["link -> \ufffd", "socket", "two\\nlines"]
    inside = folder / "old.cpio"
    inside.write_bytes(output.read_bytes())
    assert "in the folder to pack" in command("initramfs", folder, inside)[2]

    def closed(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", closed)
    status, out, err = command("initramfs", folder, output)
    assert (status, out) == (1, "")
    assert "Permission denied" in err


def test_a_reader_that_has_enough_gets_no_traceback(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(elf())
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "pyvmm_loader", "inspect", path], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_disk_that_is_full_is_said_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(elf())
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "pyvmm_loader", "inspect", path], stdout=full, stderr=subprocess.PIPE, check=False
        )
    assert (done.returncode, done.stderr.count(b"\n")) == (1, 1)
    assert b"No space left" in done.stderr


def test_a_sparse_file_is_not_searched_to_its_end(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "kernel"
    for image in (elf(), arm64()):
        path.write_bytes(image)
        os.truncate(path, 1 << 40)
        status, out, _ = command("inspect", "--json", path)  # of 1 TiB, reading all would take minutes
        assert (status, json.loads(out)["version"]) == (0, None)


def test_riscv_has_one_name(tmp_path: Path, command: Command) -> None:
    path = tmp_path / "kernel"
    for bits in (32, 64):
        path.write_bytes(elf(machine=243, bits=bits))
        assert json.loads(command("inspect", "--json", path)[1])["arch"] == f"riscv{bits}"
