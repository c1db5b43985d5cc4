"""Numbered writes to an image, and what is there of them after whoever wrote them has ended."""

from __future__ import annotations

import time

from pyvmm_virtio.backends.disk import open_disk
from pyvmm_virtio.backends.errors import BackendError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

SLOTS, SLOT = 64, 4096
SIZE = SLOTS * SLOT
"""Write `n` fills place ``n * 37 % SLOTS`` with its number."""


def open_again(path: Path, kind: str) -> Any:  # noqa: ANN401 - a disk
    """Open the image; a server that serves the dead still has it for a moment."""
    for _ in range(500):
        try:
            return open_disk(str(path), kind)
        except BackendError as error:
            reason = error
            time.sleep(0.02)
    raise reason


def check(path: Path, kind: str, written: dict[int, int]) -> None:
    """Each sector of each place holds what was flushed last there, or something written later."""
    disk = open_again(path, kind)
    content = bytearray(SIZE)
    disk.readv([memoryview(content)], 0)
    disk.close()
    for place, number in written.items():
        for at in range(place * SLOT, place * SLOT + SLOT, 512):
            sector = content[at : at + 512]
            found = int.from_bytes(sector[:8], "little")
            assert sector == found.to_bytes(8, "little") * 64, "no sector is torn"
            assert found >= number, f"place {place} holds write {found}, and write {number} was flushed"
            assert found * 37 % SLOTS == place or not found
