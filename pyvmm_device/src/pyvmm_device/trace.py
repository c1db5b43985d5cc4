r"""Who accessed what, with which value and result, and how long it took.

>>> from pyvmm_device import BusRange, IoManager, Ram
>>> accesses = []
>>> io = IoManager()
>>> io.register_pio(Ram(4), [BusRange(0x70, 4)])
>>> io.trace(accesses.append)
>>> io.pio_write(0x72, memoryview(b"\x2a"))
>>> accesses[0].replay()
"io.pio_write(0x72, memoryview(b'*'))"
"""

from __future__ import annotations

import time
from _thread import get_ident

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm_device.bus import BusEntry

    Sink = Callable[["Access"], object]
    Handler = Callable[[int, memoryview], object]


class Access:
    """One access of a guest to a device.

    Attributes:
        time: `time.monotonic_ns` when it began.
        nanoseconds: how long the device took.
        thread: the identifier of the thread that made it, a vCPU's.
        bus: the bus's name, "pio" or "mmio" in an `IoManager`.
        write: whether the guest wrote.
        address: where.
        offset: the same from the base of the device's range.
        device: which device answered.
        data: what the guest wrote, or was given.
        error: the exception that came out of the device, or None.
    """

    __slots__ = ("address", "bus", "data", "device", "error", "nanoseconds", "offset", "thread", "time", "write")

    def __init__(
        self, bus: str, write: bool, address: int, offset: int, device: object, data: bytes, started: int
    ) -> None:
        self.time = started
        self.nanoseconds = 0
        self.thread = get_ident()
        self.bus = bus
        self.write = write
        self.address = address
        self.offset = offset
        self.device = device
        self.data = data
        self.error: BaseException | None = None

    @property
    def value(self) -> int:
        """The data as a number, as the guest's processor sees it."""
        return int.from_bytes(self.data, "little")

    def replay(self) -> str:
        """Return the access as a line of Python that repeats it on an `IoManager` called ``io``."""
        argument = f"memoryview({self.data!r})" if self.write else f"memoryview(bytearray({len(self.data)}))"
        return f"io.{self.bus}_{'write' if self.write else 'read'}({self.address:#x}, {argument})"

    def __repr__(self) -> str:
        arrow = "<-" if self.write else "->"
        failed = f" {self.error!r}" if self.error is not None else ""
        return (
            f"[{self.time / 1e9:.6f} {self.nanoseconds / 1000:.1f}us] {self.bus} {'W' if self.write else 'R'}"
            f".{len(self.data)} {self.address:#x} ({type(self.device).__name__}+{self.offset:#x}) "
            f"{arrow} {self.value:#x}{failed}"
        )


def traced(bus: str, entry: BusEntry, sink: Sink) -> tuple[Handler, Handler]:
    """Return the read and write methods of a device with a report around each."""
    device, base = entry.device, entry.base

    def read(offset: int, buffer: memoryview) -> object:
        access = Access(bus, False, base + offset, offset, device, b"", time.monotonic_ns())
        try:
            return device.read(offset, buffer)  # type: ignore[func-returns-value]  # the bus sees to those that do
        except BaseException as error:
            access.error = error
            raise
        finally:
            access.nanoseconds = time.monotonic_ns() - access.time
            access.data = bytes(buffer)
            sink(access)

    def write(offset: int, data: memoryview) -> None:
        access = Access(bus, True, base + offset, offset, device, bytes(data), time.monotonic_ns())
        try:
            device.write(offset, data)
        except BaseException as error:
            access.error = error
            raise
        finally:
            access.nanoseconds = time.monotonic_ns() - access.time
            sink(access)

    return read, write
