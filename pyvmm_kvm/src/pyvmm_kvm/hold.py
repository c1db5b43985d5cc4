"""A hold on a buffer, which ends before the garbage collector takes its parts away.

`ffi.from_buffer` of a memoryview exports it: it cannot be released meanwhile. Where both are part of unreachable
cycles, the collector clears them in any order, and a memoryview that it clears while it is exported crashes the
interpreter (CPython to 3.13: its tp_clear fails with BufferError, and its deallocation then follows a null pointer).
Finalizers run before anything is cleared, so whatever keeps an export keeps it in a `Hold`.

>>> with memoryview(bytearray(8)) as view:
...     hold = Hold(ffi.from_buffer("char[]", view))
...     hold.release()
"""

from __future__ import annotations

from pyvmm_kvm._kvm import ffi

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

    from pyvmm_kvm._kvm import CData


class Hold:
    """Keeps a buffer exported until `release`, or until it goes away itself; nobody else may keep the export.

    Args:
        pin: what `ffi.from_buffer` returned.
        buffer: what it was made of, for who makes views.
    """

    __slots__ = ("buffer", "pin")

    def __init__(self, pin: CData, buffer: Buffer = b"") -> None:
        self.pin = pin
        self.buffer = buffer

    def release(self) -> None:
        """Let go of the buffer; idempotent."""
        ffi.release(self.pin)

    __del__ = release
