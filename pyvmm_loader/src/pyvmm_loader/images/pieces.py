"""The parts of a file that go to memory."""

from __future__ import annotations


class Piece:
    """A part of a file that goes to `start`: `filesz` bytes from `offset`, then zeros up to `memsz`."""

    __slots__ = ("filesz", "memsz", "offset", "start")

    def __init__(self, start: int, offset: int, filesz: int, memsz: int) -> None:
        self.start = start
        self.offset = offset
        self.filesz = filesz
        self.memsz = memsz


class Loadable:
    """All parts of a file that go to memory, and the address of its first instruction."""

    __slots__ = ("entry", "pieces")

    def __init__(self, pieces: list[Piece], entry: int) -> None:
        self.pieces = pieces
        self.entry = entry

    @property
    def start(self) -> int:
        """The lowest address."""
        return min([piece.start for piece in self.pieces])

    @property
    def end(self) -> int:
        """The first address behind all."""
        return max([piece.start + piece.memsz for piece in self.pieces])

    def move(self, start: int) -> None:
        """Move everything so that it begins at `start`."""
        distance = start - self.start
        self.entry += distance
        for piece in self.pieces:
            piece.start += distance
