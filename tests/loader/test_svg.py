from __future__ import annotations

from typing import TYPE_CHECKING
from xml.etree import ElementTree as ET

from tests.loader.images import XEN_NOTE, elf
from tests.loader.tools import need, run

from pyvmm_loader import BootPlan, split_ram
from pyvmm_loader.acpi import AcpiTables
from pyvmm_loader.plan.svg import amount, escape
from pyvmm_loader.smbios import Smbios

if TYPE_CHECKING:
    from pathlib import Path

SVG = "{http://www.w3.org/2000/svg}"


def picture(entry: str = "linux64") -> tuple[BootPlan, str]:
    smbios = Smbios(product="<&'>\x01")
    with BootPlan(
        elf(notes=(XEN_NOTE,), bss=5000), split_ram(5 << 30), "quiet", b"initrd", 2, entry,
        acpi=AcpiTables(2), smbios=smbios,
    ) as plan:  # fmt: skip
        return plan, plan.svg()


def test_every_placement_is_drawn_in_order() -> None:
    plan, text = picture()
    root = ET.fromstring(text)
    boxes = [(float(box.get("y", "0")), box.find(f"{SVG}title")) for box in root.iter(f"{SVG}rect")]
    titles = [(y, title.text) for y, title in boxes if title is not None]
    assert [title for _, title in titles] == [f"{p.start:#x}..{p.end:#x}" for p in plan.placements]
    assert [y for y, _ in titles] == sorted(y for y, _ in titles)
    words = [item.text for item in root.iter(f"{SVG}text")]
    for placement in plan.placements:
        assert placement.name in words
    assert any("with holes" in (word or "") for word in words)
    assert "read by the processor" in words
    height = float(root.get("height", ""))
    assert all(float(item.get("y", "")) < height for item in root.iter(f"{SVG}text"))


def test_text_is_escaped() -> None:
    assert escape("<a & 'b'>\x00") == "&lt;a &amp; &apos;b&apos;&gt;\ufffd"
    _, text = picture("pvh")
    ET.fromstring(text)
    assert "&lt;&amp;&apos;&gt;" in text


def test_amounts() -> None:
    assert [amount(n) for n in (1023, 1536, 3 << 30)] == ["1023 bytes", "1.5 KiB", "3 GiB"]


def test_renders(tmp_path: Path) -> None:
    convert = need("rsvg-convert")
    source = tmp_path / "plan.svg"
    source.write_text(picture()[1], encoding="utf-8")
    run(convert, "-o", tmp_path / "plan.png", source)
    assert (tmp_path / "plan.png").stat().st_size > 10_000
