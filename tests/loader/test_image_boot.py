"""arm64 and riscv64 guests, planned: kernel, device tree, initrd and registers."""

from __future__ import annotations

from struct import unpack_from
from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

import pytest
from tests.loader.images import arm64, riscv64
from tests.loader.tools import need, run

from pyvmm_loader import BootPlan, Fdt, InitrdTooLarge, ProtocolViolation, TooLarge, read_fdt
from pyvmm_loader.aarch64 import registers as arm64_registers
from pyvmm_loader.aarch64 import virt as arm64_virt
from pyvmm_loader.acpi import AcpiTables
from pyvmm_loader.riscv64 import registers as riscv64_registers
from pyvmm_loader.riscv64.interrupts import PlicLayout
from pyvmm_memory import GuestMemoryMmap

if TYPE_CHECKING:
    from pathlib import Path

    from pyvmm_loader.riscv64.interrupts import Interrupts

IMAGES = {"arm64": arm64, "riscv64": riscv64}
TREE = {"arm64": "x0", "riscv64": "a1"}
RAM = {"arm64": 0x40000000, "riscv64": 0x80000000}
SIZE = 64 << 20


def tree_of(plan: BootPlan) -> Fdt:
    placed = next(p for p in plan.placements if p.name == "device tree")
    assert placed.start == plan.boot_registers[TREE[plan.arch]]
    assert placed.data is not None
    return read_fdt(placed.data)


@pytest.mark.parametrize("arch", IMAGES)
def test_virt_machine(arch: str, tmp_path: Path) -> None:
    initrd = b"i" * 5000
    with BootPlan(IMAGES[arch](), SIZE, "console=hvc0 quiet", initrd, 3) as plan:
        tree = tree_of(plan)
        placed = next(p for p in plan.placements if p.name == "initrd")
        chosen = tree.root.find("/chosen")
        assert chosen.strings("bootargs") == ["console=hvc0 quiet"]
        start, end = (
            unpack_from(">Q", chosen["linux,initrd-start"])[0],
            unpack_from(">Q", chosen["linux,initrd-end"])[0],
        )
        assert (start, end) == (placed.start, placed.end)
        assert len([node for node in tree.root.find("/cpus").children if node.name.startswith("cpu@")]) == 3
        memory = tree.root.find(f"/memory@{RAM[arch]:x}")
        assert unpack_from(">QQ", memory["reg"]) == (RAM[arch], SIZE)
        blob = tmp_path / "tree.dtb"
        blob.write_bytes(bytes(tree))
        assert run(need("dtc"), "-I", "dtb", "-O", "dts", "-o", tmp_path / "tree.dts", blob) == ""
        with GuestMemoryMmap.from_ranges([(RAM[arch], SIZE)]) as guest:
            plan.apply(guest)
            written = bytearray(5000)
            guest.read_slice(written, start)
            assert written == initrd
        ET.fromstring(plan.svg())
        assert f"{TREE[arch]} points here" in str(plan)
        at = plan.boot_registers[TREE[arch]]
        assert at % 8 == 0
        assert at // 0x200000 == (at + len(bytes(tree)) - 1) // 0x200000, "within one block of 2 MiB"


def test_tree_of_one_s_own_is_completed() -> None:
    own = Fdt(boot_cpu=2)
    own.root["model"] = "mine"
    chosen = own.root.add("chosen", bootargs="from the tree")
    chosen["rng-seed"] = bytes(8)
    with BootPlan(riscv64(), SIZE, dtb=bytes(own)) as plan:
        assert plan.boot_registers["a0"] == 2, "the boot processor of the tree"
        kept = tree_of(plan).root.find("/chosen")
    assert kept.strings("bootargs") == ["from the tree"]
    assert "rng-seed" in kept
    with BootPlan(riscv64(), SIZE, "quiet", [b"070701", b"070701"], dtb=bytes(own)) as plan:
        changed = tree_of(plan).root.find("/chosen")
    assert changed.strings("bootargs") == ["quiet"]
    assert "linux,initrd-end" in changed
    with BootPlan(arm64(), SIZE, dtb=bytes(Fdt())) as plan:
        assert tree_of(plan).root.find("/chosen").strings("bootargs") == [""]


def test_initrd_stays_in_the_kernel_s_window() -> None:
    ranges = [(0x40000000, SIZE), (40 << 30, 1 << 30)]
    with BootPlan(arm64(), ranges, initrd=b"x" * 100) as plan:
        placed = next(p for p in plan.placements if p.name == "initrd")
        assert placed.end <= 0x40000000 + SIZE, "beyond 32 GiB the kernel would not look"
    with pytest.raises(InitrdTooLarge):
        BootPlan(arm64(), [(0x40000000, 8 << 20), (40 << 30, 1 << 30)], initrd=bytes(8 << 20))


def test_rules() -> None:
    big = Fdt()
    big.root["blob"] = bytes(2 << 20)
    with pytest.raises(ProtocolViolation, match="device tree"):
        BootPlan(arm64(), SIZE, dtb=bytes(big))
    with pytest.raises(TooLarge, match="1023"):
        BootPlan(riscv64(), SIZE, "x" * 1024)
    with pytest.raises(ProtocolViolation, match="ACPI"):
        BootPlan(arm64(), SIZE, acpi=AcpiTables(1))


def test_register_ids_of_kvm() -> None:
    with BootPlan(arm64(), SIZE) as plan:
        ids = dict(arm64_registers.one_regs(plan.boot_registers))
    assert ids[0x6030000000100040] == plan.boot_registers["pc"]
    assert ids[0x6030000000100042] == 0x3C5
    assert ids[0x6030000000100000] == plan.boot_registers["x0"]
    with BootPlan(riscv64(), SIZE) as plan:
        ids = dict(riscv64_registers.one_regs(plan.boot_registers))
    assert ids[0x8030000002000000] == plan.boot_registers["pc"]
    assert ids[0x803000000200000B] == plan.boot_registers["a1"]
    assert ids[0x8030000003000008] == 0


def test_arm64_affinities_are_unique() -> None:
    assert len({arm64_virt.mpidr(number) for number in range(123)}) == 123


def test_interrupts_of_a_riscv64_guest() -> None:
    places: list[tuple[Interrupts | None, str]] = [
        (None, "/soc/plic@c000000"),
        ("plic", "/soc/plic@c000000"),
        ("aia", "/soc/interrupt-controller@d000000"),
        (PlicLayout(0x8000000), "/soc/plic@8000000"),
    ]
    for interrupts, place in places:
        with BootPlan(riscv64(), SIZE, interrupts=interrupts) as plan:
            assert "interrupt-controller" in tree_of(plan).root.find(place)
    with pytest.raises(ProtocolViolation, match="interrupts are chosen for the riscv64"):
        BootPlan(arm64(), SIZE, interrupts="plic")
    with pytest.raises(ProtocolViolation, match="interrupts are chosen for the riscv64"):
        BootPlan(riscv64(), SIZE, dtb=bytes(Fdt()), interrupts="plic")
    with pytest.raises(ValueError, match="there are plic and aia"):
        BootPlan(riscv64(), SIZE, interrupts="gic")
