"""Frames into a file that Wireshark and tcpdump read.

Source: the IETF draft "PCAP Capture File Format" (draft-ietf-opsawg-pcap), with times in nanoseconds.
"""

from __future__ import annotations

import struct
import time

from pyvmm_device.tally import ERROR, Tally

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType
    from typing import BinaryIO, Self

MAGIC_NANOSECONDS, LINKTYPE_ETHERNET = 0xA1B23C4D, 1
FILE_HEADER = struct.Struct("<IHHiIII")
RECORD = struct.Struct("<IIII")


class PcapWriter:
    """A capture of both directions. One that cannot be written any more ends, and is logged; the network goes on.

    Args:
        file: a path, or a binary file that is open for writing and stays open.
        snaplen: how many bytes of each frame to keep.
        clock: nanoseconds since 1970.

    Attributes:
        frames: how many are in it.
        failed: whether it has ended because it could not be written.
        errors: why, counted.
    """

    def __init__(self, file: str | BinaryIO, snaplen: int = 262144, *, clock: Callable[[], int] = time.time_ns) -> None:
        self._owned = isinstance(file, str)
        self._file: BinaryIO = open(file, "wb") if isinstance(file, str) else file  # noqa: SIM115 - closed by close
        self.snaplen = snaplen
        self.frames = 0
        self.failed = False
        self.errors = Tally(__name__)
        self._clock = clock
        self._file.write(FILE_HEADER.pack(MAGIC_NANOSECONDS, 2, 4, 0, 0, snaplen, LINKTYPE_ETHERNET))

    def write(self, views: Sequence[memoryview]) -> None:
        """Add one frame, given in pieces, with the time of now."""
        if self.failed:
            return
        frame = b"".join(views)
        seconds, nanoseconds = divmod(self._clock(), 1_000_000_000)
        kept = frame[: self.snaplen]
        try:
            self._file.write(RECORD.pack(seconds, nanoseconds, len(kept), len(frame)) + kept)
        except OSError as error:
            self._end(error)
        else:
            self.frames += 1

    def _end(self, error: OSError) -> None:
        self.failed = True
        self.errors.count("end", "%r ends: %s", self, error, level=ERROR)

    def flush(self) -> None:
        """Hand everything to the file."""
        try:
            self._file.flush()
        except OSError as error:
            if not self.failed:
                self._end(error)

    def close(self) -> None:
        """Flush, and close a file that was opened here; idempotent."""
        if not self._file.closed:
            self.flush()
            if self._owned:
                try:
                    self._file.close()
                except OSError as error:
                    if not self.failed:
                        self._end(error)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<PcapWriter, {self.frames} frames>"
