"""Mutated tables, trees and archives: typed errors only, in bounded time and memory.

`PYVMM_MUTATIONS=1000000 PYVMM_MEASURED=20` runs the long campaign and measures the allocations of every twentieth
mutation; a plain run is short and measures them all.
"""

from __future__ import annotations

import os
import random
import time
from contextlib import suppress
from functools import partial
from struct import pack
from typing import TYPE_CHECKING

import pytest
from tests.loader.test_acpi import pc, read_from
from tests.loader.test_hostile import MEASURED, allocated, mutate
from tests.loader.test_initrd import archive
from tests.loader.test_smbios import machine

from pyvmm_loader import LoaderError, read_archives, read_fdt, split_bootconfig
from pyvmm_loader.aarch64 import virt as arm64
from pyvmm_loader.acpi import read_tables
from pyvmm_loader.acpi.table import table
from pyvmm_loader.checksum import checksum
from pyvmm_loader.compression.compress import compress
from pyvmm_loader.fdt import Fdt
from pyvmm_loader.fdt.tree import MAX_NAME, MAX_NODES, MAX_RESERVATIONS
from pyvmm_loader.initrd.bootconfig import append_bootconfig
from pyvmm_loader.initrd.initrd import join_initrds, microcode_archive
from pyvmm_loader.smbios import read_smbios
from pyvmm_loader.smbios.reader import find_anchor

if TYPE_CHECKING:
    from collections.abc import Callable

MUTATIONS = int(os.environ.get("PYVMM_MUTATIONS", "1200"))
FLOOR = 1 << 20
"""Memory that a reader may take for any file, however small: objects have a size of their own."""


def read_acpi(data: bytes) -> object:
    return read_tables(lambda at, size: data[at : at + size], 0)


def read_smbios_block(data: bytes) -> object:
    with suppress(LoaderError):
        find_anchor(data)
    return list(read_smbios(data[64:]))


PARSERS: dict[str, tuple[Callable[[bytes], object], bytes]] = {
    "device tree": (read_fdt, bytes(arm64.virt_tree([(0x40000000, 1 << 30)], 2, virtio=2, host=arm64.pcie()))),
    "initrd": (
        lambda data: list(read_archives(data)),
        join_initrds([archive("a", "b")], microcode=microcode_archive(amd=b"x" * 99), bootconfig="a = 1"),
    ),
    "compressed initrd": (lambda data: list(read_archives(data)), archive("early") + compress(archive("late"), "gzip")),
    "bootconfig": (split_bootconfig, append_bootconfig(b"initrd", "key = value\n")),
    "SMBIOS": (read_smbios_block, machine().place(0)),
    "ACPI": (read_acpi, bytes(read_from(pc(), 0)[:0x4000])),
}


@pytest.mark.parametrize("name", PARSERS)
def test_mutations_raise_typed_errors_only(name: str) -> None:
    parse, seed = PARSERS[name]
    chance = random.Random(name)
    refused = 0
    for number in range(MUTATIONS // len(PARSERS)):
        data = mutate(seed, chance)
        begin = time.thread_time()
        try:
            parse(data)
        except LoaderError:
            refused += 1
        assert time.thread_time() - begin < 1, data.hex()
        if number % MEASURED == 0:
            assert allocated(partial(parse, data)) <= 4 * len(data) + FLOOR, data.hex()
    assert refused


def test_trees_that_would_grow() -> None:
    good = Fdt()
    good.root.properties["a" * MAX_NAME] = b""  # as if it had been read, for the writer makes none longer than 31
    good.root.add("b" * 31)
    raw = bytes(good)
    assert read_fdt(raw) == good
    strings = raw.index(b"a" * MAX_NAME)
    longer = bytearray(raw[:strings] + b"a" + raw[strings:])
    longer[4:8] = pack(">I", len(longer))
    longer[32:36] = pack(">I", MAX_NAME + 2)
    with pytest.raises(LoaderError, match="longer than"):
        read_fdt(longer)
    node = raw.replace(b"b" * 31 + b"\0", b"b" * (MAX_NAME + 1) + bytes(4))
    grown = len(node) - len(raw)
    node = (
        pack(">4I", 0xD00DFEED, len(node), 56, strings + grown)
        + node[16:36]
        + pack(">I", strings - 56 + grown)
        + node[40:]
    )
    with pytest.raises(LoaderError, match="longer than"):
        read_fdt(node)
    many = pack(">I4x", 1) + (pack(">I4xI", 1, 2) * (MAX_NODES + 1)) + pack(">II", 2, 9)
    head = pack(">10I", 0xD00DFEED, 56 + len(many), 56, 56 + len(many), 40, 17, 16, 0, 0, len(many))
    with pytest.raises(LoaderError, match="more than"):
        read_fdt(head + bytes(16) + many)
    listed = pack(">QQ", 1, 1) * (MAX_RESERVATIONS + 1) + bytes(16)
    at = 40 + len(listed)
    nodes = pack(">I4xII", 1, 2, 9)
    head = pack(">10I", 0xD00DFEED, at + len(nodes), at, at, 40, 17, 16, 0, 0, len(nodes))
    with pytest.raises(LoaderError, match="reservations"):
        read_fdt(head + listed + nodes)


def test_acpi_that_names_one_large_table_many_times() -> None:
    memory = bytearray(2 << 20)
    large = table("SSDT", 2, bytes((1 << 20) - 36))
    memory[1 << 20 :] = large
    listing = table("XSDT", 1, pack("<Q", 1 << 20) * 256)
    memory[0x1000 : 0x1000 + len(listing)] = listing
    root = bytearray(b"RSD PTR \0PYVMM \2\0\0\0\0\x24\0\0\0" + pack("<QI", 0x1000, 0))
    root[8] = checksum(root[:20])
    root[32] = checksum(root)
    memory[: len(root)] = root
    with pytest.raises(LoaderError, match="together"):
        read_tables(lambda at, size: bytes(memory[at : at + size]), 0)
