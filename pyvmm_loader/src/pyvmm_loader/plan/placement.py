"""One row of a boot plan: bytes at an address, what they are and why they are there."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer


class Placement:
    """Bytes at an address: `data` first, zeros up to `size`; `data` None only reserves the range."""

    __slots__ = ("data", "name", "size", "start", "why")

    def __init__(self, start: int, size: int, name: str, why: str, data: Buffer | None = None) -> None:
        self.start = start
        self.size = size
        self.name = name
        self.why = why
        self.data = data

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.start + self.size

    def __repr__(self) -> str:
        return f"<Placement {self.name} {self.start:#x}..{self.end:#x}>"
