"""Device trees against dtc and fdtdump, read back, and attacked."""

from __future__ import annotations

import itertools
import random
from struct import pack, unpack_from
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.loader.tools import need, run

from pyvmm_loader import FieldRange, LoaderError
from pyvmm_loader.aarch64 import layout as arm64_layout
from pyvmm_loader.aarch64 import virt as arm64
from pyvmm_loader.fdt import Fdt, FdtError, Node, cells64, read_fdt
from pyvmm_loader.fdt.machine import Chosen, PcieHost
from pyvmm_loader.fdt.tree import MAX_DEPTH
from pyvmm_loader.riscv64 import layout as riscv64_layout
from pyvmm_loader.riscv64 import virt as riscv64
from pyvmm_loader.riscv64.interrupts import AiaLayout, PlicLayout

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

GIB = 1 << 30
CHOSEN = Chosen("console=ttyAMA0 quiet", (0x44000000, 5000), bytes(range(32)))
MACHINES = {
    "arm64": lambda: arm64.virt_tree([(0x40000000, GIB)], 17, CHOSEN, virtio=32, host=arm64.pcie()),
    "arm64 without ITS": lambda: arm64.virt_tree([(0x40000000, GIB), (1 << 40, GIB)], its=False, host=arm64.pcie()),
    "riscv64 PLIC": lambda: riscv64.virt_tree([(0x80000000, GIB)], 4, CHOSEN, virtio=8, host=riscv64.pcie()),
    "riscv64 AIA": lambda: riscv64.virt_tree(
        [(0x80000000, GIB)], 4, interrupts="aia", virtio=8, host=riscv64.pcie(), mmu="sv48"
    ),
    "riscv64 with firmware": lambda: riscv64.virt_tree([(0x80000000, GIB)], 2, machine_mode=True),
    "by hand": lambda: by_hand(),
}


def by_hand() -> Fdt:
    tree = Fdt(reservations=[(0x1000, 0x2000), (1 << 40, 1 << 30)], boot_cpu=3)
    root = tree.root
    root["compatible"] = ["vendor,board", "vendor,soc"]
    root["model"] = "by hand"
    root["#address-cells"] = 1
    root["#size-cells"] = 1
    bus = root.add("bus@1000", compatible="simple-bus", reg=[0x1000, 0x100], ranges=True)
    bus["#address-cells"] = 1
    bus["#size-cells"] = 1
    bus["odd-bytes"] = b"\1\2\3"
    bus.add("leaf@4", reg=[4, 4])["linked"] = [bus, 7]
    return tree


@pytest.mark.parametrize("name", MACHINES)
def test_dtc_agrees(name: str, tmp_path: Path) -> None:
    dtc = need("dtc")
    tree = MACHINES[name]()
    blob = tmp_path / "tree.dtb"
    blob.write_bytes(bytes(tree))
    source = run(dtc, "-I", "dtb", "-O", "dts", "-o", tmp_path / "tree.dts", blob)
    assert source == "", "no warnings"
    # a decompiled tree has numbers where labels were, which dtc remarks on; the bytes are what counts
    run(
        dtc,
        "-q",
        "-I",
        "dts",
        "-O",
        "dtb",
        "-b",
        str(tree.boot_cpu),
        "-o",
        tmp_path / "again.dtb",
        tmp_path / "tree.dts",
    )
    again = (tmp_path / "again.dtb").read_bytes()
    assert again.hex() == bytes(tree).hex()
    read = read_fdt(again)
    assert read == tree
    assert (read.reservations, read.boot_cpu) == (tree.reservations, tree.boot_cpu)
    dumped = run(need("fdtdump"), blob)
    for node in tree.root.walk():
        assert f"{node.name or '/'} {{" in dumped


def test_reads_what_dtc_makes(tmp_path: Path) -> None:
    dtc = need("dtc")
    source = tmp_path / "a.dts"
    source.write_text(
        '/dts-v1/; /memreserve/ 0x1000 0x2000; / { compatible = "a", "b"; '
        "cells = <1 2 &l>; flag; bytes = [010203]; l: node@5 { reg = <5>; }; };"
    )
    run(dtc, "-q", "-O", "dtb", "-o", tmp_path / "a.dtb", source)
    run(dtc, "-q", "-O", "dtb", "-V", "16", "-o", tmp_path / "b.dtb", source)
    for name in ("a.dtb", "b.dtb"):
        tree = read_fdt((tmp_path / name).read_bytes())
        node = tree.root.find("/node@5")
        assert tree.root.strings("compatible") == ["a", "b"]
        assert tree.root.cells("cells") == (1, 2, node.phandle)
        assert tree.root["flag"] == b""
        assert tree.root["bytes"] == b"\1\2\3"
        assert tree.reservations == [(0x1000, 0x2000)]
        assert tree.root.phandle == node.phandle + 1, "new numbers follow those that are taken"


def test_arm64_machine() -> None:
    root = MACHINES["arm64"]().root
    chosen = root.find("/chosen")
    assert chosen.strings("bootargs") == [CHOSEN.cmdline]
    assert unpack_from(">Q", chosen["linux,initrd-end"]) == (0x44000000 + 5000,)
    assert root.find(chosen.strings("stdout-path")[0]).strings("compatible")[0] == "arm,pl011"
    assert root.find("/cpus/cpu@100")["enable-method"] == b"psci\0", "the seventeenth is in the second cluster"
    gic = root.find(f"/interrupt-controller@{arm64_layout.GIC_DIST:x}")
    assert root.cells("interrupt-parent") == (gic.phandle,)
    assert gic.cells("reg")[6:] == (0, arm64_layout.GIC_REDIST_SIZE * 17)
    assert len([node for node in root.walk() if node.name.startswith("virtio_mmio@")]) == 32
    bridge = root.find(f"/pcie@{arm64_layout.PCIE_ECAM:x}")
    rows = bridge.cells("interrupt-map")
    width = 3 + 1 + 1 + 2 + 3
    assert len(rows) == 16 * width
    assert rows[width * 5 : width * 6] == (1 << 11, 0, 0, 2, gic.phandle, 0, 0, 0, 3 + (1 + 1) % 4, 4)
    assert bridge.cells("bus-range") == (0, 255)
    ranges = [(node.name, *unpack_from(">QQ", node["reg"])) for node in root.children if node.name.startswith("mem")]
    assert ranges == [("memory@40000000", 0x40000000, GIB)]


def test_riscv64_machine() -> None:
    root = MACHINES["riscv64 AIA"]().root
    hart = root.find("/cpus/cpu@3")
    assert hart.strings("riscv,isa") == ["rv64imafdc_zicntr_zicsr_zifencei_zihpm_ssaia"]
    assert hart.strings("riscv,isa-extensions")[-1] == "ssaia", "or Linux has no driver for the IMSIC"
    assert hart.strings("mmu-type") == ["riscv,sv48"]
    imsic = root.find(f"/soc/interrupt-controller@{riscv64_layout.IMSIC:x}")
    assert imsic.cells("interrupts-extended")[-2:] == (hart.find("interrupt-controller").phandle, 9)
    assert root.find(f"/soc/pcie@{riscv64_layout.PCIE_ECAM:x}").cells("msi-parent") == (imsic.phandle,)
    plic = MACHINES["riscv64 PLIC"]().root.find(f"/soc/plic@{riscv64_layout.PLIC:x}")
    assert plic.cells("interrupts-extended")[1::4] == (0xFFFFFFFF,) * 4, "no contexts for machine mode"
    assert "ssaia" not in MACHINES["riscv64 PLIC"]().root.find("/cpus/cpu@0").strings("riscv,isa-extensions")
    firmware = MACHINES["riscv64 with firmware"]().root
    assert firmware.find(f"/soc/clint@{riscv64_layout.CLINT:x}").cells("interrupts-extended")[1::2] == (3, 7, 3, 7)
    with pytest.raises(KeyError):
        root.find(f"/soc/clint@{riscv64_layout.CLINT:x}")


def test_riscv64_interrupts_as_laid_out() -> None:
    plic = PlicLayout(0x8000000, 0x400000, sources=31, contexts=1)
    root = riscv64.virt_tree([(0x80000000, GIB)], 2, interrupts=plic, clock=False, timebase=24_000_000).root
    node = root.find("/soc/plic@8000000")
    assert unpack_from(">QQ", node["reg"]) == (0x8000000, 0x400000)
    assert node.cells("riscv,ndev") == (31,)
    harts = [root.find(f"/cpus/cpu@{hart}/interrupt-controller").phandle for hart in range(2)]
    assert node.cells("interrupts-extended") == (harts[0], 9, harts[1], 9)
    assert root.find("/cpus").cells("timebase-frequency") == (24_000_000,)
    with pytest.raises(KeyError):
        root.find(f"/soc/rtc@{riscv64_layout.RTC:x}")
    aia = AiaLayout(0xC000000, 0x4000, 0x24000000, sources=64, ids=127)
    root = riscv64.virt_tree([(0x80000000, GIB)], 2, interrupts=aia, extensions=["i", "m", "ssaia"]).root
    assert root.find("/cpus/cpu@1").strings("riscv,isa-extensions") == ["i", "m", "ssaia"]
    assert unpack_from(">QQ", root.find("/soc/interrupt-controller@24000000")["reg"]) == (0x24000000, 0x2000)
    assert root.find("/soc/interrupt-controller@24000000").cells("riscv,num-ids") == (127,)
    assert root.find("/soc/interrupt-controller@c000000").cells("riscv,num-sources") == (64,)


def test_what_is_no_tree() -> None:
    node = Node("a")
    node.add("child")
    cases: list[Callable[[], object]] = [
        lambda: Node("a b"),
        lambda: node.add("child"),
        lambda: node.__setitem__("x", -1),
        lambda: node.__setitem__("x", 1 << 32),
        lambda: node.__setitem__("x", [1.5]),  # type: ignore[list-item]
        lambda: node.__setitem__("x", False),
        lambda: node.__setitem__("", 1),
        lambda: arm64.virt_tree([(0, GIB)], 1000),
        lambda: riscv64.virt_tree([(0, GIB)], 0),
        lambda: riscv64.virt_tree([(0, GIB)], virtio=9),
        lambda: riscv64.virt_tree([(0, GIB)], interrupts="xics"),
        lambda: riscv64.virt_tree([(0, GIB)], interrupts="aia", machine_mode=True),
        lambda: riscv64.virt_tree([(0, GIB)], interrupts=PlicLayout(contexts=1), machine_mode=True),
        lambda: PlicLayout(sources=0),
        lambda: PlicLayout(sources=1024),
        lambda: PlicLayout(contexts=3),
        lambda: AiaLayout(sources=1024),
        lambda: AiaLayout(ids=256),
        lambda: PcieHost((0, 1 << 20), (0, 1), [1, 2]),
        lambda: PcieHost((0, 1), (0, 1), [1, 2, 3, 4]),
    ]
    for case in cases:
        with pytest.raises((LoaderError, ValueError)):
            case()
    node["odd"] = b"abc"
    with pytest.raises(LoaderError, match="cells"):
        node.cells("odd")
    with pytest.raises(LoaderError, match="NUL"):
        node.strings("odd")
    assert repr(node) == "<Node a 1 properties, 1 children>"
    assert repr(Fdt()) == "<Fdt 1 nodes>"
    assert "odd" in node
    assert cells64(1) == bytes(7) + b"\1"


NAMES = st.text("abcdefghijklmnop,-#", min_size=1, max_size=8)


@settings(max_examples=30, deadline=None)
@given(
    st.recursive(
        st.dictionaries(NAMES, st.binary(max_size=20), max_size=3).map(lambda properties: (properties, [])),
        lambda inner: st.tuples(
            st.dictionaries(NAMES, st.binary(max_size=20), max_size=3), st.lists(inner, max_size=3)
        ),
        max_leaves=12,
    ),
    st.lists(st.tuples(st.integers(1, 2**64 - 1), st.integers(0, 2**64 - 1)), max_size=3),
)
def test_round_trip(shape: tuple[dict[str, bytes], list[object]], reservations: list[tuple[int, int]]) -> None:
    tree = Fdt(reservations=reservations)

    def fill(node: Node, shape: tuple[dict[str, bytes], list[object]]) -> None:
        for name, value in shape[0].items():
            node[name] = value
        for number, child in enumerate(shape[1]):
            fill(node.add(f"n{number}"), child)  # type: ignore[arg-type]

    fill(tree.root, shape)
    ends = sorted((start, start + size) for start, size in reservations)
    gaps = [start - end for (_, end), (start, _) in itertools.pairwise([(0, 0), *ends])]
    if all(gap >= 0 for gap in gaps) and all(start < end <= 1 << 64 for start, end in ends):
        assert read_fdt(bytes(tree)) == tree
    else:
        with pytest.raises(FdtError, match="reservation"):
            bytes(tree)


def test_depth_is_bounded() -> None:
    tree = Fdt()
    node = tree.root
    for _ in range(MAX_DEPTH - 1):
        node = node.add("x")
    assert read_fdt(bytes(tree)) == tree
    deep = bytes(tree).replace(pack(">I", 9), b"")
    node.add("x")
    with pytest.raises(FdtError, match="deeper"):
        bytes(tree)
    token = pack(">I", 1) + b"x\0\0\0"
    deeper = bytearray(deep.replace(token, token + token, 1))
    assert len(deeper) > len(deep)
    with pytest.raises(FdtError):
        read_fdt(deeper)


@pytest.mark.parametrize("name", ["riscv64 with firmware", "by hand"])
def test_mutated_trees_are_typed_errors(name: str) -> None:
    chance = random.Random(name)
    good = bytes(MACHINES[name]())
    refused = 0
    for _ in range(600):
        copy = bytearray(good)
        for _ in range(chance.randint(1, 3)):
            at = chance.randrange(chance.choice((40, len(copy)))) & ~3
            copy[at : at + 4] = pack(
                ">I", chance.choice((0, 1, 2, 3, 9, 0xFFFFFFFF, 0x7FFFFFFF, chance.randrange(1 << 32)))
            )
        if chance.random() < 0.2:
            del copy[chance.randint(0, len(copy)) :]
        try:
            tree = read_fdt(copy)
            assert sum(len(value) for node in tree.root.walk() for value in node.properties.values()) <= len(copy)
        except FdtError:
            refused += 1
    assert refused > 200


def test_numbers_that_no_tree_holds() -> None:
    cases: list[Callable[[], object]] = [
        lambda: cells64(-1),
        lambda: cells64(1 << 64),
        lambda: bytes(Fdt(reservations=[(0, 1 << 64)])),
        lambda: bytes(Fdt(boot_cpu=-1)),
        lambda: arm64.virt_tree([(0, 1 << 64)]),
        lambda: riscv64.virt_tree([(-1, GIB)]),
    ]
    for case in cases:
        with pytest.raises(FieldRange):
            case()
    with pytest.raises(ValueError, match="virtio slots"):
        arm64.virt_tree([(0x40000000, GIB)], virtio=1 << 20)
