"""The interrupt controller of a RISC-V machine without message-signalled interrupts: the PLIC.

It turns up to 1023 sources into one line for each *context*, which is one privilege mode of one hart:

>>> plic = Plic([lambda up: print("hart 0:", up), lambda up: print("hart 1:", up)], sources=31)
>>> plic.write_register(priority_at(10), 1)
>>> plic.write_register(enables_at(1), 1 << 10)
>>> plic.source(10).assert_()
hart 1: True
>>> plic.read_register(claim_at(1))
hart 1: False
10

A kernel under a hypervisor runs in supervisor mode and never sees machine mode, so there may be one context a hart. A
machine with firmware of its own has two, M then S, and so has every device tree that was copied from such a machine.

Source: RISC-V Platform-Level Interrupt Controller Specification 1.0.0.
"""

from __future__ import annotations

from pyvmm_device.errors import DeviceStateError, InterruptError
from pyvmm_device.interrupt_output import InterruptOutput
from pyvmm_device.locks import DeferringLock
from pyvmm_device.state import Stateful, array, uint

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Any

SIZE = 0x4000000
"""How much of the address space it has, whatever the number of contexts."""
MAX_SOURCES, MAX_CONTEXTS = 1023, 15872
SOURCES = 127
PRIORITY_BITS = 3
PRIORITIES = 1 << PRIORITY_BITS
"""Levels of priority, of which 0 is "never interrupt"; the specification leaves their number open."""

# what begins where, and how far apart the contexts are (chapter 3, "Memory Map")
PRIORITY, PENDING, ENABLES, CONTEXTS = 0x0, 0x1000, 0x2000, 0x200000
ENABLES_STRIDE, CONTEXT_STRIDE = 0x80, 0x1000
THRESHOLD, CLAIM = 0, 4
WORD = 0xFFFFFFFF


def priority_at(source: int) -> int:
    """Return the offset of the register with a source's priority."""
    return PRIORITY + 4 * source


def enables_at(context: int, source: int = 0) -> int:
    """Return the offset of the register whose bits enable 32 sources, a given one among them, for a context."""
    return ENABLES + ENABLES_STRIDE * context + source // 32 * 4


def threshold_at(context: int) -> int:
    """Return the offset of the register with a context's threshold."""
    return CONTEXTS + CONTEXT_STRIDE * context + THRESHOLD


def claim_at(context: int) -> int:
    """Return the offset of the register that claims when it is read and completes when it is written."""
    return CONTEXTS + CONTEXT_STRIDE * context + CLAIM


class PlicSource:
    """A source whose level counts: it asks again after each completion while it is up."""

    __slots__ = ("_plic", "number")

    def __init__(self, plic: Plic, number: int) -> None:
        self._plic = plic
        self.number = number

    def assert_(self) -> None:
        """Raise the line."""
        self._plic.set_level(self.number, True)

    def clear(self) -> None:
        """Lower the line."""
        self._plic.set_level(self.number, False)

    def __repr__(self) -> str:
        return f"<PlicSource {self.number}>"


class PlicEdge:
    """A source whose edges count: of those that come before the completion of the first, one is remembered."""

    __slots__ = ("_plic", "number")

    def __init__(self, plic: Plic, number: int) -> None:
        self._plic = plic
        self.number = number

    def trigger(self) -> None:
        """Send one edge."""
        self._plic.send_edge(self.number)

    def __repr__(self) -> str:
        return f"<PlicEdge {self.number}>"


class Plic(Stateful):
    """A PLIC, to be registered with `SIZE` bytes.

    What the specification leaves open: there are seven priorities above "never", all registers are zero after a reset,
    and an access of another width than 32 bits, or to no register, reads as zero and writes nothing.

    Args:
        outputs: one function for each context, called with the level of its line whenever that changes, with no lock
            held (KVM: ``VcpuFd.interrupt``, for supervisor mode).
        sources: how many there are, 1 to 1023; they count from 1.
    """

    STATE = {
        "levels": uint(MAX_SOURCES + 1),
        "edges": uint(MAX_SOURCES + 1),
        "pending": uint(MAX_SOURCES + 1),
        "served": uint(MAX_SOURCES + 1),
        "priorities": array(uint(PRIORITY_BITS), MAX_SOURCES + 1),
        "thresholds": array(uint(PRIORITY_BITS), MAX_CONTEXTS),
        "enables": array(uint(MAX_SOURCES + 1), MAX_CONTEXTS),
    }

    def __init__(self, outputs: Sequence[Callable[[bool], object]], sources: int = SOURCES) -> None:
        if not 1 <= sources <= MAX_SOURCES or not 1 <= len(outputs) <= MAX_CONTEXTS:
            raise InterruptError(
                f"no PLIC has {sources} sources and {len(outputs)} contexts: 1 to {MAX_SOURCES}, and {MAX_CONTEXTS}"
            )
        self.lock: DeferringLock = DeferringLock()
        self._outputs = [InterruptOutput(output, self.lock) for output in outputs]
        self.sources = sources
        self._all = (1 << sources + 1) - 2  # there is no source 0
        self._levels = 0
        self._power_on()

    def _power_on(self) -> None:
        self._edges = 0  # came while their source was served
        self._pending = 0
        self._served = 0  # between claim and completion: the gateway lets nothing through
        self._priorities = [0] * (self.sources + 1)
        self._above = [0] * PRIORITIES  # by threshold: the sources that would pass it
        self._thresholds = [0] * len(self._outputs)
        self._enables = [0] * len(self._outputs)

    def reset(self) -> None:
        """Be as after power-on, nothing enabled; the level sources stay as they are."""
        with self.lock:
            self._power_on()
            self._forward(self._levels)
            self._update()

    @property
    def contexts(self) -> int:
        """How many there are."""
        return len(self._outputs)

    # the devices' side: the gateways

    def source(self, number: int) -> PlicSource:
        """Return a source as a level interrupt, 1 to `sources`; raises `InterruptError` for others."""
        self._check(number)
        return PlicSource(self, number)

    def edge(self, number: int) -> PlicEdge:
        """Return a source as an edge interrupt."""
        self._check(number)
        return PlicEdge(self, number)

    def _check(self, number: int) -> None:
        if not 1 <= number <= self.sources:
            raise InterruptError(f"this PLIC has sources 1 to {self.sources}, not {number}")

    def set_level(self, number: int, active: bool) -> None:
        """Set whether a source asks for attention; what it asked for stays pending when it no longer does."""
        bit = 1 << number
        with self.lock:
            if not active:
                self._levels &= ~bit
                return
            self._levels |= bit
            self._request(bit)

    def send_edge(self, number: int) -> None:
        """Take an edge of a source."""
        bit = 1 << number
        with self.lock:
            if self._served & bit:
                self._edges |= bit
            else:
                self._request(bit)

    def _request(self, bit: int) -> None:
        if not (self._pending | self._served) & bit:
            self._pending |= bit
            self._update()

    def _forward(self, bits: int) -> None:
        self._pending |= bits & ~self._served

    # the harts' side

    def _update(self) -> None:
        """Move the lines of the contexts to where they belong."""
        pending = self._pending
        for context, output in enumerate(self._outputs):
            output.set(pending & self._enables[context] & self._above[self._thresholds[context]] != 0)

    def claim(self, context: int) -> int:
        """Return the pending source of the highest priority, of those the one with the lowest number; 0 is none.

        "The PLIC can perform a claim at any time and the claim operation is not affected by the setting of the
        priority threshold register."
        """
        with self.lock:
            wanted = self._pending & self._enables[context]
            for threshold in range(PRIORITIES - 2, -1, -1):
                if found := wanted & self._above[threshold]:
                    bit = found & -found
                    self._pending &= ~bit
                    self._served |= bit
                    self._update()
                    return bit.bit_length() - 1
        return 0

    def complete(self, context: int, number: int) -> None:
        """Let a source ask again.

        "If the completion ID does not match an interrupt source that is currently enabled for the target, the
        completion is silently ignored."
        """
        with self.lock:
            bit = 1 << number if number <= self.sources else 0
            if not self._served & self._enables[context] & bit:
                return
            self._served &= ~bit
            if (self._levels | self._edges) & bit:
                self._edges &= ~bit
                self._request(bit)

    # the guest's side

    def read(self, offset: int, buffer: memoryview) -> None:
        """Read a register; what there is none of reads as zero."""
        value = self.read_register(offset) if len(buffer) == 4 and not offset & 3 else 0
        buffer[:] = value.to_bytes(len(buffer), "little")

    def write(self, offset: int, data: memoryview) -> None:
        """Write a register."""
        if len(data) == 4 and not offset & 3:
            self.write_register(offset, int.from_bytes(data, "little"))

    def read_register(self, offset: int) -> int:
        """Read a register of 32 bits at a multiple of four; reading a claim register claims."""
        if offset >= CONTEXTS:
            context, register = divmod(offset - CONTEXTS, CONTEXT_STRIDE)
            if context < len(self._outputs):
                if register == CLAIM:
                    return self.claim(context)
                if register == THRESHOLD:
                    return self._thresholds[context]
        elif offset >= ENABLES:
            context, register = divmod(offset - ENABLES, ENABLES_STRIDE)
            if context < len(self._outputs):
                return self._enables[context] >> register * 8 & WORD
        elif offset >= PENDING:
            return self._pending >> (offset - PENDING) * 8 & WORD
        elif offset // 4 <= self.sources:
            return self._priorities[offset // 4]
        return 0

    def write_register(self, offset: int, value: int) -> None:
        """Write one; the pending bits are read only, and of a priority only the low bits count."""
        with self.lock:
            if offset >= CONTEXTS:
                context, register = divmod(offset - CONTEXTS, CONTEXT_STRIDE)
                if context < len(self._outputs):
                    if register == CLAIM:
                        self.complete(context, value)
                        return
                    if register == THRESHOLD:
                        self._thresholds[context] = value % PRIORITIES
            elif offset >= ENABLES:
                context, register = divmod(offset - ENABLES, ENABLES_STRIDE)
                if context < len(self._outputs):
                    others = self._enables[context] & ~(WORD << register * 8)
                    self._enables[context] = (others | (value & WORD) << register * 8) & self._all
            elif 0 < offset // 4 <= self.sources:
                self._set_priority(offset // 4, value % PRIORITIES)
            self._update()

    def _set_priority(self, number: int, priority: int) -> None:
        self._priorities[number] = priority
        for threshold in range(PRIORITIES):
            self._above[threshold] &= ~(1 << number)
            self._above[threshold] |= (priority > threshold) << number

    # state

    def _check_fields(self, fields: dict[str, Any]) -> None:
        shape = len(fields["priorities"]) - 1, len(fields["thresholds"]), len(fields["enables"])
        if shape != (self.sources, self.contexts, self.contexts):
            raise DeviceStateError(
                "Plic", f"it has {shape[0]} sources and {shape[1]} contexts, not {self.sources} and {self.contexts}"
            )
        for bits in (fields["levels"], fields["edges"], fields["pending"], fields["served"], *fields["enables"]):
            if bits & ~self._all:
                raise DeviceStateError("Plic", f"it has sources that are none of 1 to {self.sources}")
        if fields["pending"] & fields["served"] or fields["edges"] & ~fields["served"] or fields["priorities"][0]:
            raise DeviceStateError("Plic", "no sequence of interrupts leads to it")

    def _after_restore(self) -> None:
        self._above = [
            sum(1 << number for number, priority in enumerate(self._priorities) if priority > threshold)
            for threshold in range(PRIORITIES)
        ]
        self._forward(self._levels)
        # whoever took over the lines does not know where they were
        for output in self._outputs:
            output.forget()
            output.set(False)
        self._update()

    def __repr__(self) -> str:
        enabled = 0
        for bits in self._enables:
            enabled |= bits
        return (
            f"<Plic of {len(self._outputs)} contexts, {enabled.bit_count()} of {self.sources} sources enabled, "
            f"{self._pending.bit_count()} pending, {self._served.bit_count()} served>"
        )
