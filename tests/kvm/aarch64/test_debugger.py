"""A debugger's view of arm64 guests: steps, breakpoints, watchpoints, and the guest's own `brk`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from pyvmm_kvm import ArmDebug
from pyvmm_kvm.aarch64.debug import BRK, STEP, USE_SW_BP, WATCHPOINT, GuestDebug
from pyvmm_kvm.aarch64.registers import core

from ..guests import ARM_END, ENTRY, ended, words

if TYPE_CHECKING:
    from collections.abc import Callable

    from ..guests import Guest

pytestmark = pytest.mark.kvm
# mov x0,#1; add x0,x0,#1; the same; mov x1,#0x3000; str x0,[x1]; ldr x2,[x1]
STEPS = words("d2800020 91000400 91000400 d2860001 f9000020 f9400022") + ARM_END
BREAK = words("d42000e0") + ARM_END  # brk #7


def test_single_steps(boot: Callable[..., Guest]) -> None:
    guest = boot(STEPS)
    with GuestDebug(guest.vcpu) as debug:
        exit_ = debug.step()
        assert isinstance(exit_, ArmDebug)
        assert exit_.hsr >> 26 == STEP
        assert debug.hit(exit_) == []
        assert list(debug.steps(3)) == [ENTRY + 4 * number for number in (2, 3, 4)]
        assert guest.vcpu.get_one_reg(core("regs", 0)) == 3
    assert ended(guest.vcpu.run())
    assert guest.vcpu.last_exits[0] == f"ArmDebug(hsr={exit_.hsr:#x}, hsr_high=0x0, far=0x0)"


def test_breakpoints(boot: Callable[..., Guest]) -> None:
    guest = boot(STEPS)
    with GuestDebug(guest.vcpu) as debug:
        first, second = debug.watch(ENTRY + 8), debug.watch(ENTRY + 16)
        exit_ = debug.resume()
        assert isinstance(exit_, ArmDebug)
        assert (debug.hit(exit_), debug.position(exit_)) == ([first], ENTRY + 8)
        debug.clear(first)
        exit_ = debug.resume()
        assert isinstance(exit_, ArmDebug)
        assert (debug.hit(exit_), debug.position(exit_)) == ([second], ENTRY + 16)
        debug.clear(second)
        assert ended(debug.resume())


@pytest.mark.parametrize(("kind", "at"), [("write", 16), ("read", 20), ("access", 16)])
def test_watchpoints(boot: Callable[..., Guest], kind: str, at: int) -> None:
    guest = boot(STEPS)
    with GuestDebug(guest.vcpu) as debug:
        elsewhere, number = debug.watch(0x3100, 4, "access"), debug.watch(0x3000, 8, kind)
        exit_ = debug.resume()
        assert isinstance(exit_, ArmDebug)
        assert exit_.hsr >> 26 == WATCHPOINT
        assert debug.hit(exit_) == [number] != [elsewhere]
        assert debug.position(exit_) == ENTRY + at
        debug.clear(number)
        assert ended(debug.resume())
    assert guest.memory[0x3000] == 3


def test_a_brk_is_the_debuggers(boot: Callable[..., Guest]) -> None:
    guest = boot(BREAK)
    with GuestDebug(guest.vcpu) as debug:
        debug.arm(USE_SW_BP)
        exit_ = guest.vcpu.run()
        assert isinstance(exit_, ArmDebug)
        assert (exit_.hsr >> 26, exit_.hsr & 0xFFFF) == (BRK, 7)
        assert debug.hit(exit_) == []
        assert debug.position(exit_) == ENTRY
        guest.vcpu.set_one_reg(core("pc"), ENTRY + 4)
        assert ended(debug.resume())


def test_there_are_no_more_points_than_the_host_says(boot: Callable[..., Guest]) -> None:
    from pyvmm_kvm import Kvm, KvmError

    with Kvm() as kvm:
        count = kvm.get_guest_debug_hw_bps()  # type: ignore[attr-defined]
        assert 2 <= count <= 16
        assert 2 <= kvm.get_guest_debug_hw_wps() <= 16  # type: ignore[attr-defined]
    guest = boot(STEPS)
    with GuestDebug(guest.vcpu) as debug:
        for number in range(16):
            debug.watch(0x8000 + 4 * number)
        last = debug.watch
        with pytest.raises(ValueError, match="all are taken"):
            last(0x9000)
        # KVM takes all and the processor looks at those that it has
        try:
            assert ended(debug.resume())
        except KvmError as error:
            assert error.ioctl == "KVM_SET_GUEST_DEBUG"  # noqa: PT017 - one of two right answers
