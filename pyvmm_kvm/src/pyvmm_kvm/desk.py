"""Where the data of exits lies: how a vCPU uses one exit again and never changes what somebody keeps.

An exit of port or memory-mapped I/O is made once and handed out again whenever the same thing happens, for making one
costs as much as handling it. Its bytes lie on a desk: native/functions.c puts there what the guest said or asks, takes
from there what was answered, and sees to it that a desk is used again only when nobody holds what it handed out last,
for all of its exits show the same bytes. It counts references for that:

- an exit is held by `VcpuFd`'s table of exits, its `data` by the exit and by a pin, and nobody else, or somebody keeps
  it;
- `lent` is what all views of a desk's bytes share. It is held by the desk, by its base and by one view in each of its
  exits. A part of a view that somebody made holds it too.

The pin is an export of `data`: a view that was released would be of no use the next time, and one with an export cannot
be (BufferError).

A vCPU has two desks, and gets a new one where somebody keeps more than the last exit.
"""

from __future__ import annotations

import gc

from pyvmm_kvm._kvm import ffi, lib
from pyvmm_kvm.exits.hot import IoIn, IoOut, MmioRead, MmioWrite
from pyvmm_kvm.hold import Hold

TYPE_CHECKING = False
if TYPE_CHECKING:
    from pyvmm_kvm.exits.hot import VcpuExit

# what native/functions.c packs into the result of pyvmm_run
_LENGTH, _ADDRESS, _DESK = lib.PYVMM_LENGTH_SHIFT, lib.PYVMM_ADDRESS_SHIFT, lib.PYVMM_DESK_SHIFT
_KIND_MASK, _LENGTH_MASK, _CODE_MASK = (1 << _LENGTH) - 1, (1 << _ADDRESS - _LENGTH) - 1, (1 << _DESK) - 1
_HOT: dict[int, type[IoOut | IoIn | MmioRead | MmioWrite]] = {
    lib.PYVMM_IO_OUT: IoOut,
    lib.PYVMM_IO_IN: IoIn,
    lib.PYVMM_MMIO_WRITE: MmioWrite,
    lib.PYVMM_MMIO_READ: MmioRead,
}


class Desk:
    """The bytes of a vCPU's exits, and which of `exits` are of them. `cdata` is its struct pyvmm_desk."""

    __slots__ = ("_base", "_lent", "_pins", "cdata")

    def __init__(self) -> None:
        # the bytes apart from the rest: whoever keeps a view of them keeps no more
        data = ffi.new("__u8[8]")
        self._base = memoryview(ffi.buffer(data))
        # Python has no name for what views of one buffer share; where it is out of reach, a view stands for it
        self._lent: object = (gc.get_referents(self._base) or [self._base])[0]
        self._pins: dict[int, Hold] = {}
        self.cdata = ffi.new("struct pyvmm_desk *", {"data": data, "lent": ffi.cast("void *", id(self._lent))})
        lib.pyvmm_count(self.cdata)

    def learn(self, key: int, exits: dict[int, VcpuExit]) -> VcpuExit | None:
        """Make the exit that a result of `pyvmm_run` says and note it in `exits`; None where it is none of a desk."""
        kind = _HOT.get(key & _KIND_MASK)
        if kind is None:
            return None
        code, desk = key & _CODE_MASK, key >> _DESK << _DESK
        view = self._base[: code >> _LENGTH & _LENGTH_MASK]
        exit_ = kind(code >> _ADDRESS, view)
        # noted before C knows of it, and the one that it replaces forgotten after: what C knows of lives
        exits[key] = exit_
        self._pins[key] = Hold(ffi.from_buffer("char[]", view))
        other = lib.pyvmm_learn(self.cdata, code, ffi.cast("void *", id(exit_)), ffi.cast("void *", id(view)))
        if other:
            exits.pop(other | desk, None)
            self._pins.pop(other | desk, None)
        del view
        lib.pyvmm_count(self.cdata)
        return exit_

    def forget(self, exits: dict[int, VcpuExit]) -> None:
        """Take its exits out of `exits`, once C does not know of this desk any more."""
        for key in self._pins:
            exits.pop(key, None)
