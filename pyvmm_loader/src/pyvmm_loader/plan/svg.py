"""A boot plan as a picture: memory from low to high, what lies where, and who reads it.

Every part has the same height, whatever its size: a GDT of 48 bytes is as important to a boot as a kernel of 10 MB.
Gaps between them are marked with their size.
"""

from __future__ import annotations

from pyvmm_loader.plan.placement import KERNEL, PROCESSOR, RESERVED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm_loader.plan.placement import Placement

WIDTH, ROW, GAP, TOP, LEFT, BOX = 1060, 34, 20, 64, 150, 190
FONT = "font-family='DejaVu Sans Mono, monospace'"
RUNS, CPU, READ, NOBODY = "runs", "processor", "kernel", "nobody"
COLOURS = {CPU: "#f2c6a0", READ: "#bcd9ee", RUNS: "#c9e7b8", NOBODY: "#e4e4e4"}
LEGEND = (
    (RUNS, "the kernel itself"),
    (READ, "read by the kernel"),
    (CPU, "read by the processor"),
    (NOBODY, "kept free"),
)
READERS = {KERNEL: RUNS, PROCESSOR: CPU, RESERVED: NOBODY}
UNITS = ((30, "GiB"), (20, "MiB"), (10, "KiB"))


def reader(placement: Placement) -> str:
    """Return who reads a placement: a key of COLOURS."""
    return READERS.get(placement.role, READ)


def amount(size: int) -> str:
    """Write a size as people do.

    >>> amount(48), amount(4096), amount(10 << 20)
    ('48 bytes', '4 KiB', '10 MiB')
    """
    for shift, unit in UNITS:
        if size >= 1 << shift:
            return f"{size / (1 << shift):.4g} {unit}"
    return f"{size} bytes"


def escape(text: str) -> str:
    """Escape what XML would take for markup, and what it does not allow."""
    clean = "".join([character if character.isprintable() else "\ufffd" for character in text])
    for character, name in (("&", "&amp;"), ("<", "&lt;"), (">", "&gt;"), ("'", "&apos;")):
        clean = clean.replace(character, name)
    return clean


def _text(x: int, y: int, text: str, size: int = 12, anchor: str = "start", fill: str = "#222") -> str:
    return f"<text x='{x}' y='{y}' font-size='{size}' text-anchor='{anchor}' fill='{fill}'>{escape(text)}</text>"


def svg(title: str, ranges: Sequence[tuple[int, int]], placements: Sequence[Placement]) -> str:
    """Return the picture as one SVG document; gaps that are not all RAM, which `ranges` says, have holes.

    `ranges` are (start, size) pairs, `placements` are in the order of their addresses.
    """
    parts: list[str] = []
    y = TOP
    at = min([start for start, _ in ranges])
    for placement in placements:
        if placement.start > at:
            parts.append(_gap(ranges, at, placement.start, y))
            y += GAP
        parts.append(_box(placement, y))
        y += ROW
        at = max(at, placement.end)
    end = max([start + size for start, size in ranges])
    if end > at:
        parts.append(_gap(ranges, at, end, y))
        y += GAP
    parts.append(_text(LEFT - 10, y + 12, f"{end:#x}", anchor="end", fill="#777"))
    y += 36
    for number, (kind, words) in enumerate(LEGEND):
        x = LEFT + number * 200
        parts.append(f"<rect x='{x}' y='{y - 12}' width='16' height='16' fill='{COLOURS[kind]}' stroke='#555'/>")
        parts.append(_text(x + 24, y + 1, words))
    head = (
        f"<svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{y + 20}' {FONT}>"
        f"<title>{escape(title)}</title><rect width='100%' height='100%' fill='white'/>"
    )
    return "\n".join([head, _text(20, 30, title, 14), *parts, "</svg>"]) + "\n"


def _box(placement: Placement, y: int) -> str:
    box = (
        f"<rect x='{LEFT}' y='{y}' width='{BOX}' height='{ROW}' fill='{COLOURS[reader(placement)]}' stroke='#555'>"
        f"<title>{placement.start:#x}..{placement.end:#x}</title></rect>"
    )
    return "\n".join(
        [
            box,
            _text(LEFT - 10, y + 12, f"{placement.start:#x}", anchor="end", fill="#777"),
            _text(LEFT + BOX // 2, y + 21, placement.name, anchor="middle"),
            _text(LEFT + BOX + 14, y + 21, f"{amount(placement.size)}: {placement.why}"),
        ]
    )


def _gap(ranges: Sequence[tuple[int, int]], start: int, end: int, y: int) -> str:
    inside = any(low <= start and end <= low + size for low, size in ranges)
    free = f"{amount(end - start)} {'free' if inside else 'with holes'}"
    line = f"<path d='M{LEFT} {y}v{GAP}m{BOX} 0v-{GAP}' stroke='#aaa' stroke-dasharray='2 3' fill='none'/>"
    return line + _text(LEFT + BOX // 2, y + 14, free, 10, "middle", "#999")
