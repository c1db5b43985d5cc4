"""What a writer makes is taken by whoever reads it: our own reader, dtc, iasl, dmidecode, cpio, the kernel's rules.

Each writer is given random input, a good part of it wrong. Either it refuses by an error of the loader's own, or what
it made is read back as what was asked for. The writers are found in the code: a module of the loader that makes bytes
for somebody else fails `test_every_writer_is_tried` until it is attacked here, or in `test_writers_of_tables`.
"""

from __future__ import annotations

import ast
import contextlib
import os
import stat
import string
import struct
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.hostile.writers import hostile, tool

from pyvmm_loader import Cmdline, Initramfs, LoaderError, read_initramfs
from pyvmm_loader.cmdline import split_arguments
from pyvmm_loader.compression.compress import FORMS, CompressionUnavailable, compress
from pyvmm_loader.fdt import Fdt, Node, cells64, read_fdt
from pyvmm_loader.fdt.machine import add_memory
from pyvmm_loader.fdt.tree import MAX_DEPTH
from pyvmm_loader.images.source import Source
from pyvmm_loader.initrd.bootconfig import append_bootconfig, split_bootconfig

if TYPE_CHECKING:
    from collections.abc import Callable

LOADER = Path(__file__).resolve().parents[2] / "pyvmm_loader/src/pyvmm_loader"

TRIED = {
    "fdt/node.py", "fdt/tree.py", "fdt/machine.py", "initrd/initramfs.py", "initrd/bootconfig.py", "cmdline.py",
    "compression/compress.py", "smbios/structure.py", "smbios/tables.py", "acpi/table.py", "acpi/fadt.py",
    "acpi/fixed.py", "acpi/madt.py", "acpi/numa.py", "acpi/rsdp.py", "acpi/tables.py", "x86_64/bootparam.py",
    "x86_64/e820.py", "x86_64/mptable.py", "x86_64/multiboot.py", "x86_64/multiboot2.py", "x86_64/pvh.py",
    "plan/layout.py", "plan/plan.py",
}  # fmt: skip
"""Modules whose bytes somebody else reads, attacked below."""
ELSEWHERE = {
    "fields.py": "struct.pack for the others",
    "guid.py": "a part of ACPI and SMBIOS",
    "x86_64/registers.py": "what KVM reads; its page tables and segments are constants",
    "x86_64/bios.py": "code and tables that are constants",
    "x86_64/linux16.py": "numbers of a real-mode header that is bootparam's",
    "x86_64/linux_boot.py": "a header that is bootparam's",
    "x86_64/layout.py": "constants",
    "images/bzimage.py": "a reader",
    "plan/svg.py": "a picture for people",
    "commands/initramfs.py": "files of a folder, by initrd/initramfs.py",
}


def makes_bytes(path: Path) -> bool:
    """Whether a module packs numbers, or is asked for its bytes."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef) and node.name == "__bytes__":
            return True
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in ("pack", "fields.pack", "struct.pack") or called.endswith((".pack", ".compress")):
                return True
    return False


def test_every_writer_is_tried() -> None:
    found = {str(path.relative_to(LOADER)) for path in LOADER.rglob("*.py") if makes_bytes(path)}
    found = {name for name in found if not name.startswith("acpi/aml/")}  # its terms are tried as AML
    assert not found - TRIED - set(ELSEWHERE), "attack it here"


# device trees

NAMES = st.one_of(
    st.sampled_from(
        ["a", "b", "cpu@0", "cpu@1", "x" * 31, "x" * 32, "", "@1", "a@", "a@1@2", "1a", "a/b", "é", "a b", "-"]
    ),
    st.text(string.ascii_letters + string.digits + ",._+-@#?/ ", max_size=34),
)
PROPERTIES = st.one_of(
    st.sampled_from(
        ["reg", "name", "phandle", "linux,phandle", "#address-cells", "compatible", "status", "", "y" * 32]
    ),
    st.text(string.ascii_letters + string.digits + ",._+-#?@*/ ", min_size=1, max_size=33),
)
VALUES = st.one_of(
    st.integers(-1, 1 << 32), st.binary(max_size=9), st.text(max_size=5), st.booleans(), st.none(), st.floats(),
    st.lists(st.integers(0, 0xFFFFFFFF), max_size=3), st.sampled_from([0, 1, 2, 7, 0xFFFFFFFF, [1, 2], "okay"]),
)  # fmt: skip
TREES: Any = st.recursive(
    st.tuples(NAMES, st.dictionaries(PROPERTIES, VALUES, max_size=3), st.just([])),
    lambda inner: st.tuples(NAMES, st.dictionaries(PROPERTIES, VALUES, max_size=3), st.lists(inner, max_size=3)),
    max_leaves=6,
)
RESERVATIONS = st.lists(
    st.tuples(st.integers(0, (1 << 64) - 1), st.sampled_from([0, 1, 4096, 1 << 63, (1 << 64) - 1])), max_size=3
)


def fill(node: Node, shape: Any, refer: bool) -> None:  # noqa: ANN401 - recursive
    for name, value in shape[1].items():
        # what is refused is left out, and the rest has to make a good tree
        try:
            node[name] = value
        except LoaderError:
            continue
    for inner in shape[2]:
        try:
            child = node.add(inner[0])
        except LoaderError:
            continue
        if refer:
            node["refers"] = child
        fill(child, inner, refer)


@hostile
@given(TREES, RESERVATIONS, st.integers(-1, 1 << 32), st.booleans())
def test_device_trees(shape: Any, reservations: list[tuple[int, int]], cpu: int, refer: bool) -> None:  # noqa: ANN401 - recursive
    tree = Fdt(reservations=reservations, boot_cpu=cpu)
    try:
        fill(tree.root, shape, refer)
        blob = bytes(tree)
    except LoaderError:
        return
    again = read_fdt(blob)
    assert bytes(again) == blob
    assert sorted(again.reservations) == sorted(reservations)
    assert again.boot_cpu == cpu
    said = tool("dtc", "-q", "-I", "dtb", "-O", "dtb", "-", data=blob)
    assert said is None or "ERROR" not in said, said


def test_trees_changed_by_hand() -> None:
    """What does not go through a method is looked at when the tree becomes bytes."""

    def itself() -> Fdt:
        tree = Fdt()
        node = tree.root.add("a")
        node.children.append(node)
        return tree

    def deep(levels: int) -> Fdt:
        tree = Fdt()
        node = tree.root
        for _ in range(levels - 1):
            node = node.add("n")
        return tree

    def with_root(change: Callable[[Node], object]) -> Fdt:
        tree = Fdt()
        change(tree.root)
        return tree

    read_fdt(bytes(deep(MAX_DEPTH)))
    wrong: list[Callable[[], Fdt]] = [
        itself,
        lambda: deep(MAX_DEPTH + 1),
        lambda: with_root(lambda root: root.children.extend([Node("a"), Node("a")])),
        lambda: with_root(lambda root: root.children.append(Node())),
        lambda: with_root(lambda root: root.properties.update({"a b": b""})),
        lambda: with_root(lambda root: root.properties.update({"": b""})),
        lambda: with_root(lambda root: root.properties.update({"a": "text"})),  # type: ignore[dict-item]
        lambda: with_root(lambda root: root.properties.update({"phandle": b"\0" * 4})),
        lambda: with_root(lambda root: root.add("a").properties.update({"name": b"b\0"})),
        lambda: Fdt(Node("root")),
        lambda: Fdt(reservations=[(1, 1)] * 2),
        lambda: Fdt(reservations=[(4096 * number, 1) for number in range(1025)]),
    ]
    for make in wrong:
        with pytest.raises(LoaderError):
            bytes(make())
    assert cells64(1, 2) == struct.pack(">2Q", 1, 2)


@pytest.mark.parametrize("ranges", [[(0, 0)], [(0, 8192), (4096, 4096)], [((1 << 64) - 4096, 8192)], [(-1, 4096)]])
def test_memory_that_no_machine_has(ranges: list[tuple[int, int]]) -> None:
    with pytest.raises(LoaderError):
        add_memory(Fdt().root, ranges)


# an initramfs, as the kernel unpacks it

PARTS = ["a", "b", "bin", "dev", "..", ".", "", "x" * 255, "x" * 256, "é", "TRAILER!!!", "a\0b", "\ud800", "\udcff"]
PATHS = st.lists(st.sampled_from(PARTS), min_size=1, max_size=4).map("/".join)
ENTRIES = st.one_of(
    st.tuples(st.just("file"), PATHS, st.binary(max_size=4), st.sampled_from([0o644, 0o7777, 0o10000, 0o100644, -1])),
    st.tuples(st.just("directory"), PATHS, st.sampled_from([0o755, 0o40755])),
    st.tuples(st.just("symlink"), PATHS, st.one_of(PATHS, st.sampled_from(["", "/bin", "x" * 4096, "../a"]))),
    st.tuples(st.just("device"), PATHS, st.sampled_from([0, 5, 4095, 4096, -1]), st.sampled_from([0, 1, 1 << 20])),
    st.tuples(st.just("fifo"), PATHS),
    st.tuples(st.just("socket"), PATHS),
    st.tuples(st.just("hardlink"), PATHS, PATHS),
)


class Kernel:
    """The unpacking of Linux init/initramfs.c, done in a folder by the same system calls."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.special: dict[str, int] = {}  # what is a pipe here, and would be a device there

    def unpack(self, archive: bytes) -> list[str]:
        """Return the names that were dropped."""
        dropped, links = [], dict[int, str]()
        for entry in read_initramfs(archive):
            path = self.path(entry.name)
            try:
                self._clean(path, entry.mode)
                if stat.S_ISREG(entry.mode):
                    if entry.nlink > 1 and entry.ino in links:
                        self._clean(path, 0)
                        os.link(links[entry.ino], path)
                    links.setdefault(entry.ino, path)
                    flags = os.O_WRONLY | os.O_CREAT | (0 if entry.nlink > 1 else os.O_TRUNC)
                    fd = os.open(path, flags)
                    os.write(fd, entry.data)
                    os.close(fd)
                elif stat.S_ISDIR(entry.mode):
                    if not os.path.isdir(path):
                        os.mkdir(path)
                elif stat.S_ISLNK(entry.mode):
                    self._clean(path, 0)
                    target = entry.data.decode("utf-8", "surrogateescape")
                    os.symlink(self.path(target) if target.startswith("/") else target, path)
                else:
                    # a device needs rights that a test has not; a pipe is made in the same way
                    os.mkfifo(path)
                    self.special[self._key(path)] = stat.S_IFMT(entry.mode)
            except OSError as error:
                dropped.append(f"{entry.name[:40]}: {error.strerror}")
        return dropped

    def path(self, name: str) -> str:
        return os.path.join(self.folder, name.lstrip("/"))

    @staticmethod
    def _key(path: str) -> str:
        folder, name = os.path.split(path)
        return os.path.join(os.path.realpath(folder), name)

    def _clean(self, path: str, mode: int) -> None:
        try:
            there = os.lstat(path)
        except OSError:
            return
        found = stat.S_IFMT(there.st_mode)
        if found == stat.S_IFIFO:
            found = self.special[self._key(path)]
        if found != stat.S_IFMT(mode):
            try:
                (os.rmdir if stat.S_ISDIR(there.st_mode) else os.unlink)(path)
            except OSError:
                return


@hostile
@given(st.lists(ENTRIES, max_size=8))
def test_archives_are_unpacked_whole(entries: list[tuple[Any, ...]]) -> None:
    archive = Initramfs()
    wanted: dict[str, bytes] = {}
    for kind, name, *arguments in entries:
        try:
            getattr(archive, kind)(name, *arguments)
        except LoaderError:
            continue
        if kind == "file":
            wanted[name] = arguments[0]
    data = bytes(archive)
    with tempfile.TemporaryDirectory() as folder:
        assert Kernel(folder).unpack(data) == []
        made = {entry.name for entry in read_initramfs(data)}
    assert len(made) >= len({name.strip("/") for name in wanted if not name.startswith(".")}) - len(entries)
    said = tool("cpio", "-t", "--quiet", data=data)
    assert said is None or len(said.splitlines()) >= len(made)


def test_archives_changed_by_hand() -> None:
    archive = Initramfs()
    archive.file("a", b"x")
    archive.entries[0].name = "missing/a"
    with pytest.raises(LoaderError, match="dropped"):
        bytes(archive)
    archive.entries[0].name = "a"
    archive.entries[0].mtime = -1
    with pytest.raises(LoaderError):
        bytes(archive)


def test_directories_are_added_and_learn_their_mode() -> None:
    archive = Initramfs()
    archive.file("usr/lib/a", b"x")
    archive.symlink("bin", "usr/bin")
    archive.file("bin/sh", b"y")
    archive.directory("usr", 0o700)
    names = {entry.name: entry for entry in read_initramfs(bytes(archive))}
    assert list(names) == ["usr", "usr/lib", "usr/lib/a", "bin", "usr/bin", "bin/sh"]
    assert names["usr"].mode == stat.S_IFDIR | 0o700


# bootconfig, the command line


@hostile
@given(st.binary(max_size=9), st.text(st.sampled_from("ab=.#;\n \0é\ud800"), max_size=12))
def test_bootconfigs(initrd: bytes, text: str) -> None:
    try:
        made = append_bootconfig(initrd, text)
    except LoaderError:
        return
    assert split_bootconfig(made) == (initrd, text.rstrip("\0"))
    size = int.from_bytes(made[-20:-16], "little")
    assert 0 < size <= 32767  # XBC_DATA_MAX
    assert text.strip("; \n")


TAKEN = [
    "a=1", "a = 1;b = 2 ;", "a.b.c", "a { b = 1; c }", "a { b { c = 1 } } d", "a = \"x;y\", 'z}' # a comment",
    "a = 1, 2,\n 3", "a = 1, # the first\n 2", "a = 1\na += 2, 3\na := 4", "a = 1\na.b = 2", "# a comment\na = 1",
    "a = # a comment\n 1", "a-b_c.0 = caf\u00e9", "a =", "a = {",
]  # fmt: skip
REFUSED = [
    "a", "= 1\n", "a. = 1", "a..b = 1", "a b = 1", "a, b\n", "a+b = 1\n", "a:b = 1\n", "a = 1\na = 2", 'a = "1',
    "a = '1' 2", "a { b = 1", "a { b = 1 } }", "a }", "{ b = 1 }", "a = \x01", "a = 1\na += 2\na = 3", ";;;",
    "# only a comment", "a = 1\nb",
]  # fmt: skip


@pytest.mark.parametrize("text", TAKEN)
def test_bootconfigs_that_the_kernel_takes(text: str) -> None:
    append_bootconfig(b"", text + "\n")


@pytest.mark.parametrize("text", REFUSED)
def test_bootconfigs_that_the_kernel_refuses(text: str) -> None:
    with pytest.raises(LoaderError, match="the kernel refuses"):
        append_bootconfig(b"", text)


def test_limits_of_a_bootconfig() -> None:
    """XBC_NODE_MAX, XBC_KEYLEN_MAX and XBC_DEPTH_MAX, each at its last and one beyond."""
    for most, text in (
        (4096, lambda size: "".join(f'{number:x}=""\n' for number in range(size))),
        (255, lambda size: "k" * size + "\n"),
        (16, lambda size: ".".join("k" * size) + "\n"),
        (15, lambda size: "k{" * size + "}" * size),
    ):
        append_bootconfig(b"", text(most))
        with pytest.raises(LoaderError, match="kernel"):
            append_bootconfig(b"", text(most + 1))


def test_the_largest_bootconfig() -> None:
    for size in range(32760, 32772):
        try:
            made = append_bootconfig(b"", "a=" + "b" * (size - 2))
        except LoaderError:
            assert size > 32760
        else:
            assert int.from_bytes(made[-20:-16], "little") <= 32767


WORDS = st.text(st.sampled_from('ab= "-,é\t'), max_size=6)


@hostile
@given(st.lists(st.tuples(st.sampled_from(["insert", "str", "init", "multiple", "mmio"]), WORDS, WORDS), max_size=5))
def test_command_lines(steps: list[tuple[str, str, str]]) -> None:
    line = Cmdline(200)
    told: list[tuple[str, str | None]] = []
    for kind, one, other in steps:
        try:
            if kind == "insert":
                line.insert(one, other)
                plain = other[1:-1] if other.startswith('"') else other
                told.append((one, plain))
            elif kind == "multiple":
                line.insert_multiple(one, [other, other])
                told.append((one, f"{other},{other}"))
            elif kind == "str":
                line.insert_str(one)
            elif kind == "init":
                line.insert_init_args(one)
            else:
                line.add_virtio_mmio_device(len(one) << 10, 1 << 40, len(other))
        except LoaderError:
            continue
    try:
        read = split_arguments(str(line))
    except LoaderError:
        return
    kernel = read[: read.index(("--", None))] if ("--", None) in read else read
    assert [each for each in told if each not in kernel] == [], str(line)


# compression


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("size", [0, 1, 5000, 200_000])
def test_what_is_compressed_is_unpacked(form: str, size: int) -> None:
    data = (os.urandom(256) * (size // 256 + 1))[:size]
    try:
        packed = compress(data, form)
    except CompressionUnavailable as error:
        pytest.skip(str(error))
    source = Source(packed)
    try:
        source.unpack()
    except LoaderError:
        assert not size, "nothing but an empty file is refused"
    else:
        assert bytes(source.view) == data
    source.close()


def empty_members() -> dict[str, bytes]:
    made = {
        "zstd": bytes.fromhex("28b52ffd2000010000"),
        "zstd, a byte": bytes.fromhex("28b52ffd200109000041"),
        "lz4": bytes.fromhex("04224d18604082") + bytes(4),
        "lz4, legacy": b"\x02\x21\x4c\x18",
        "lz4, legacy, a byte": b"\x02\x21\x4c\x18" + struct.pack("<I", 2) + b"\x10A",
        "lzo, a byte": struct.pack(">III", 1, 1, 0) + b"A",
    }
    for form in ("gzip", "bzip2", "xz", "lzma"):
        for content in (b"", b"A"):
            made[f"{form}, {len(content)} bytes"] = compress(content, form)
    return made


@pytest.mark.parametrize("name", list(empty_members()))
def test_members_are_bounded_by_the_file(name: str) -> None:
    """Work goes with a file's size, not with the number of members that somebody put into it: far from a second."""
    member = empty_members()[name]
    head = b""
    if name.startswith("lzo"):
        head = (
            b"\x89LZO\0\r\n\x1a\n"
            + struct.pack(">HHHBBI", 0x1030, 0x2080, 0x940, 1, 5, 1)
            + bytes(12)
            + b"\0"
            + bytes(4)
        )
    data = head + member * ((3 << 20) // len(member))
    begun = time.process_time()
    with Source(data) as source, contextlib.suppress(LoaderError):
        source.unpack()
    assert time.process_time() - begun < 5, "it took as long as the attack"
