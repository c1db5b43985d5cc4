"""The structures of x86's timers, interrupt controllers, clock and debug registers."""

from __future__ import annotations

from pyvmm_kvm.struct import Array, Struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeVar

    S = TypeVar("S", bound=Struct)

__all__ = ["Array", "ClockData", "IoApicState", "IrqChip", "PicState", "PitChannelState", "PitState2"]

CLOCK_TSC_STABLE = 2
CLOCK_REALTIME = 4
CLOCK_HOST_TSC = 8


class PitChannelState(Struct, ctype="struct kvm_pit_channel_state"):
    """One of the three timer channels."""

    __slots__ = ()
    count: int
    latched_count: int
    count_latched: int
    status_latched: int
    status: int
    read_state: int
    write_state: int
    write_latch: int
    rw_mode: int
    mode: int
    bcd: int
    gate: int
    count_load_time: int


class PitState2(Struct, ctype="struct kvm_pit_state2"):
    """The i8254 (struct kvm_pit_state2)."""

    __slots__ = ()
    flags: int

    def channel(self, number: int) -> PitChannelState:
        """Return channel 0 to 2, in place."""
        start = range(3)[number] * PitChannelState.size()
        return PitChannelState.inside(self, self.cdata.channels + number, start)


class PicState(Struct, ctype="struct kvm_pic_state"):
    """One i8259 (struct kvm_pic_state)."""

    __slots__ = ()
    last_irr: int
    irr: int
    imr: int
    isr: int
    priority_add: int
    irq_base: int
    read_reg_select: int
    poll: int
    special_mask: int
    init_state: int
    auto_eoi: int
    rotate_on_auto_eoi: int
    special_fully_nested_mode: int
    init4: int
    elcr: int
    elcr_mask: int


class IoApicState(Struct, ctype="struct pyvmm_ioapic_state"):
    """The IOAPIC (struct kvm_ioapic_state); `redirtbl` has 24 entries of 64 bits."""

    __slots__ = ()
    base_address: int
    ioregsel: int
    id: int
    irr: int
    redirtbl: Array


class IrqChip(Struct, ctype="struct pyvmm_irqchip"):
    """One interrupt controller as KVM saves it; `pic` and `ioapic` read the part that `chip_id` says."""

    __slots__ = ()
    chip_id: int
    chip: memoryview

    PIC_MASTER = 0
    PIC_SLAVE = 1
    IOAPIC = 2

    @property
    def pic(self) -> PicState:
        """A copy of the state of a PIC; assign it back to change it."""
        return PicState.from_bytes(self.chip)

    @pic.setter
    def pic(self, state: PicState) -> None:
        self.chip[: PicState.size()] = _only(PicState, state).view()

    @property
    def ioapic(self) -> IoApicState:
        """A copy of the state of the IOAPIC; assign it back to change it."""
        return IoApicState.from_bytes(self.chip)

    @ioapic.setter
    def ioapic(self, state: IoApicState) -> None:
        self.chip[: IoApicState.size()] = _only(IoApicState, state).view()


def _only(kind: type[S], state: S) -> S:
    if not isinstance(state, kind):
        raise TypeError(f"{type(state).__name__} is no {kind.__name__}")
    return state


class ClockData(Struct, ctype="struct kvm_clock_data"):
    """The paravirtual clock (struct kvm_clock_data)."""

    __slots__ = ()
    clock: int
    flags: int
    realtime: int
    host_tsc: int
