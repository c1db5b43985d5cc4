"""What an initrd is made of, and where it goes: several archives, microcode, bootconfig, compression."""

from __future__ import annotations

import itertools
import os
import random
import re
import stat
from struct import pack, unpack_from
from typing import TYPE_CHECKING

import pytest
from tests.loader.images import XEN_NOTE, FlatMemory, bzimage, elf
from tests.loader.tools import need, run

from pyvmm_loader import BootPlan, Initramfs, InitrdTooLarge, LoaderError, place_initrd, read_initramfs, split_ram
from pyvmm_loader.__main__ import main
from pyvmm_loader.commands.initramfs import describe
from pyvmm_loader.commands.initramfs import pack as pack_folder
from pyvmm_loader.compression.compress import FORMS, CompressionUnavailable, compress
from pyvmm_loader.initrd.bootconfig import FOOTER_SIZE, MAGIC, MAX_SIZE, append_bootconfig, split_bootconfig
from pyvmm_loader.initrd.initramfs_reader import read_archives
from pyvmm_loader.initrd.initrd import join_initrds, microcode_archive

if TYPE_CHECKING:
    from pathlib import Path

SIZE = 4 << 20


def archive(*names: str) -> bytes:
    fs = Initramfs()
    for name in names:
        fs.file(name, name.encode() * 3)
    return bytes(fs)


def names_of(initrd: bytes) -> list[str]:
    return [entry.name for entry in read_archives(initrd)]


def test_microcode_first_bootconfig_last() -> None:
    early = microcode_archive(intel=b"update", amd=b"other")
    odd = archive("first") + b"\0"  # ends off a boundary of four
    initrd = join_initrds([odd, archive("second")], microcode=early, bootconfig="a = 1\n")
    assert initrd.startswith(b"070701")
    microcode = ["kernel", "kernel/x86", "kernel/x86/microcode"]
    files = [f"kernel/x86/microcode/{vendor}.bin" for vendor in ("AuthenticAMD", "GenuineIntel")]
    assert names_of(initrd) == [*microcode, *files, "first", "second"]
    assert split_bootconfig(initrd)[1] == "a = 1\n"
    assert len(initrd) % 4 == 0
    with pytest.raises(LoaderError, match="via"):
        microcode_archive(via=b"x")
    with pytest.raises(LoaderError, match="empty"):
        join_initrds([b"", archive("a")])


def test_bootconfig_footer() -> None:
    for size in range(12):
        initrd = append_bootconfig(b"i" * size, "key = value\n")
        assert len(initrd) % 4 == 0
        length, checksum = unpack_from("<II", initrd, len(initrd) - FOOTER_SIZE)
        text = initrd[len(initrd) - FOOTER_SIZE - length : -FOOTER_SIZE]
        assert sum(text) == checksum
        assert initrd.endswith(b"#BOOTCONFIG\n")
        assert split_bootconfig(initrd) == (b"i" * size, "key = value\n")
    assert split_bootconfig(b"no footer") == (b"no footer", None)
    for bad in ("a\0b", "x" * (MAX_SIZE + 1)):
        with pytest.raises(LoaderError, match="NUL"):
            append_bootconfig(b"", bad)
    for broken in (MAGIC, b"\xff" * 8 + MAGIC, pack("<II", 4, 5) + MAGIC, b"\xff\0\0\0" + pack("<II", 4, 255) + MAGIC):
        with pytest.raises(LoaderError):
            split_bootconfig(broken)


def test_plan_joins_and_places() -> None:
    with BootPlan(elf(notes=(XEN_NOTE,)), SIZE, initrd=[archive("a"), archive("b")], bootconfig="x = 1") as plan:
        memory = FlatMemory(SIZE)
        plan.apply(memory)
        placed = next(p for p in plan.placements if p.name == "initrd")
    assert names_of(bytes(memory.data[placed.start : placed.end])) == ["a", "b"]
    with BootPlan(elf(notes=(XEN_NOTE,)), SIZE, bootconfig="x = 1") as plan:
        assert any(p.name == "initrd" for p in plan.placements)
    with BootPlan(elf(notes=(XEN_NOTE,)), SIZE, initrd=[]) as plan:
        assert not any(p.name == "initrd" for p in plan.placements)


@pytest.mark.parametrize(("version", "highest"), [(0x202, 0x37FFFFFF), (0x20F, 0x7FFFFFFF), (0x20F, 0x1FFFFF)])
def test_every_bzimage_protocol_keeps_its_limit(version: int, highest: int) -> None:
    image = bzimage(version=version, initrd_addr_max=highest)
    with BootPlan(image, 3 << 30, initrd=b"x" * 5000) as plan:
        placed = next(p for p in plan.placements if p.name == "initrd")
    assert placed.end - 5000 == placed.start
    assert placed.start % 4096 == 0
    assert highest - 2 * 4096 < placed.end - 1 <= highest


def test_object_that_ends_exactly_at_the_end_of_ram() -> None:
    # upstream refuses this: it asks whether the address behind the object is RAM
    for ranges in ([(0, SIZE)], [(0, 2 << 20), (1 << 32, SIZE)]):
        end = sum(ranges[-1])
        low = max(ranges[-1][0], 1 << 20)
        assert place_initrd(end - low, ranges, 1 << 20, 1 << 40) == low
        with pytest.raises(InitrdTooLarge):
            place_initrd(end - low + 1, ranges, 1 << 20, 1 << 40)
    # the last byte of RAM is the last byte allowed
    assert place_initrd(4096, [(0, SIZE)], 0, SIZE - 1) == SIZE - 4096
    assert place_initrd(4096, split_ram(5 << 30), 1 << 20, (1 << 40) - 1) == (6 << 30) - 4096


def test_compression_is_what_the_tools_unpack(tmp_path: Path) -> None:
    data = archive("init") * 50
    tools = {"gzip": "gzip", "xz": "xz", "lzma": "xz", "bzip2": "bzip2", "zstd": "zstd", "lz4": "lz4"}
    for form in FORMS:
        try:
            packed = compress(data, form)
        except CompressionUnavailable as error:
            assert "pip install" in str(error)  # noqa: PT017 - libraries are optional
            continue
        assert packed == compress(data, form), "equal input, equal output"
        assert len(packed) < len(data)
        path = tmp_path / f"packed.{form}"
        path.write_bytes(packed)
        if os.path.exists(f"/usr/bin/{tools[form]}"):
            assert run(f"/usr/bin/{tools[form]}", "-dc", "-q", *(["--format=lzma"] if form == "lzma" else []), path)
        assert [entry.name for entry in read_archives(archive("early") + packed)] == ["early"] + ["init"] * 50
    with pytest.raises(CompressionUnavailable, match="gzip"):
        compress(b"", "zip")


def test_xz_uses_the_checksum_that_the_kernel_knows() -> None:
    assert compress(b"x", "xz")[6:8] == b"\0\1", "CRC32"


def fill(folder: Path) -> None:
    (folder / "bin").mkdir()
    (folder / "bin/tool").write_bytes(b"\x7fELF" * 1000)
    (folder / "bin/tool").chmod(0o4755)
    os.link(folder / "bin/tool", folder / "bin/alias")
    (folder / "init").symlink_to("bin/tool")
    os.mkfifo(folder / "pipe", 0o600)
    (folder / "empty").touch()
    (folder / "Grüße").write_text("ü")
    if os.geteuid() == 0:
        os.mknod(folder / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
        os.mknod(folder / "disk", stat.S_IFBLK | 0o660, os.makedev(254, 16))


LINE = re.compile(r"(\S{10}) +(\d+) \S+ +\S+ +(\d+(?:, +\d+)?) .{12} (.+)")


def test_archive_equals_gnu_cpio_s_reading(tmp_path: Path) -> None:
    cpio = need("cpio")
    folder = tmp_path / "folder"
    folder.mkdir()
    fill(folder)
    raw = bytes(pack_folder(str(folder)))
    assert raw == bytes(pack_folder(str(folder)))
    seen = []
    for line in run(cpio, "-itv", "--quiet", stdin=raw).splitlines():
        found = LINE.fullmatch(line)
        assert found, line
        seen.append((found[1], int(found[2]), found[3].replace(" ", ""), found[4]))
    ours = []
    for entry in read_initramfs(raw):
        mode, links, _, size, name = describe(entry).replace(", ", ",").split(maxsplit=4)
        ours.append((mode, int(links), size, name))
    assert ours == seen
    target = tmp_path / "extracted"
    target.mkdir()
    run("/bin/sh", "-c", f"cd {target} && {cpio} -idm --quiet", stdin=raw)
    assert bytes(pack_folder(str(target))) == raw, "what GNU cpio extracts packs to the same bytes"


def test_reads_what_gnu_cpio_writes(tmp_path: Path) -> None:
    cpio = need("cpio")
    fill(tmp_path)
    names = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*"))
    for form in ("newc", "crc"):
        made = run_bytes(cpio, "-o", "-H", form, "--quiet", stdin="\n".join(names).encode(), cwd=tmp_path)
        entries = {entry.name: entry for entry in read_initramfs(made)}
        assert set(entries) == set(names)
        for name in names:
            path = tmp_path / name
            if path.is_file() and not path.is_symlink():
                group = [entries[other].data for other in names if entries[other].ino == entries[name].ino]
                assert path.read_bytes() in group
    broken = bytearray(made)
    broken[made.index(b"\x7fELF")] ^= 1
    with pytest.raises(LoaderError, match="adds up"):
        list(read_initramfs(broken))


def run_bytes(*command: str, stdin: bytes, cwd: Path) -> bytes:
    import subprocess

    return subprocess.run(command, input=stdin, cwd=cwd, capture_output=True, check=True).stdout


def test_mutated_initrds_are_typed_errors() -> None:
    chance = random.Random(3)
    seeds = [
        join_initrds([archive("a", "b")], microcode=microcode_archive(amd=b"x"), bootconfig="a = 1"),
        archive("early") + compress(archive("late"), "gzip"),
        archive("early") + compress(archive("late"), "xz"),
    ]
    refused = 0
    for seed in itertools.islice(itertools.cycle(seeds), 900):
        copy = bytearray(seed)
        for _ in range(chance.randint(1, 3)):
            copy[chance.randrange(len(copy))] = chance.choice((0, 0x30, 0x66, 0xFF, chance.randrange(256)))
        try:
            total = sum(len(entry.data) for entry in read_archives(copy[: chance.randint(1, len(copy))]))
            assert total < 1 << 20
        except LoaderError:
            refused += 1
    assert refused > 300
    with pytest.raises(LoaderError, match="256"):
        list(read_archives(archive("a") * 300))
    with pytest.raises(LoaderError, match="multiple of 4"):
        list(read_archives(b"\0\0" + archive("a")))
    with pytest.raises(LoaderError, match="compressed"):
        list(read_archives(compress(compress(archive("a"), "gzip"), "gzip")))


def test_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    fill(folder)
    output = str(tmp_path / "initramfs.cpio.gz")
    assert main(["initramfs", str(folder), output, "--compress", "gzip"]) == 0
    assert main(["initramfs", "--list", output]) == 0
    said = capsys.readouterr().out
    assert "lrwxrwxrwx   1 0:0               8 init -> bin/tool" in said
    assert main(["initramfs", str(tmp_path / "missing"), output]) == 1
    assert "name one to pack" in capsys.readouterr().err
    kernel, config, picture = tmp_path / "kernel", tmp_path / "config", tmp_path / "plan.svg"
    kernel.write_bytes(elf(notes=(XEN_NOTE,)))
    config.write_text("a = 1\n")
    options = ["plan", str(kernel), "--memory", "64M", "--tables", "acpi", "--smbios", "Box", "--svg", str(picture)]
    assert main([*options, "--initrd", output, "--initrd", output, "--bootconfig", str(config)]) == 0
    said = capsys.readouterr().out
    assert "FACP" in said
    assert "Box, " in said
    assert picture.read_text().startswith("<svg")
    assert main(["plan", str(kernel), "--entry", "linux16"]) == 1
    assert "it offers pvh and linux64" in capsys.readouterr().err
