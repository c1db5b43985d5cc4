"""A VM, a vCPU and what they handed out become garbage, each part first once; run as a program, it says so at the end.

The collector clears what is unreachable in the order of its lists, where whoever keeps a part may stand behind it.
"""

from __future__ import annotations

import gc
import sys
import warnings

from pyvmm_kvm import Kvm
from pyvmm_memory import GuestMemoryMmap

CODE = bytes.fromhex("ba1002b041eeecee edeff4")
"""mov dx, 0x210; mov al, 'A'; out, in, out, in, out; hlt"""


def parts(kvm: Kvm) -> list[object]:
    """Make a vCPU that has made exits, and return all that a VMM may keep of it."""
    vm = kvm.create_vm()
    memory = GuestMemoryMmap.from_ranges([(0, 0x10000)])
    view = memoryview(next(iter(memory)).buffer)
    vm.set_user_memory_region(0, 0, view)
    memory.write_slice(CODE, 0x1000)
    vcpu = vm.create_vcpu(0)
    regs, sregs = vcpu.get_regs(), vcpu.get_sregs()
    sregs.cs.base = sregs.cs.selector = 0
    regs.rip, regs.rflags = 0x1000, 2
    vcpu.set_sregs(sregs)
    vcpu.set_regs(regs)
    exits = [vcpu.run() for _ in range(6)]
    kept: list[object] = [*exits, *[exit_.data for exit_ in exits if hasattr(exit_, "data")]]
    sync = vcpu.sync_regs()
    return [vm, vcpu, view, *kept, vcpu.run_page, *sync, *[each.view() for each in sync], vm.memory_slots, regs.view()]


def discard(found: list[object], first: int, close: bool) -> None:
    """Let go of all of them, with one of them at the front of the collector's list."""
    if close:
        found[1].close()  # type: ignore[attr-defined]
        found[0].close()  # type: ignore[attr-defined]
    # what is known to be reachable stays where it is in the list, and what is found to be so later moves behind it
    front = found[first]
    rest: list[object] = [found]
    rest.append(rest)
    del found
    gc.collect()
    del front, rest
    gc.collect()


def main() -> None:
    """Do it with each part, closed and not."""
    warnings.simplefilter("ignore", ResourceWarning)
    gc.disable()
    errors: list[object] = []
    sys.unraisablehook = lambda error: errors.append(error.exc_value)
    with Kvm() as kvm:
        for close in (False, True):
            for first in range(len(parts(kvm))):
                discard(parts(kvm), first, close)
    print("errors", errors)


if __name__ == "__main__":
    main()
