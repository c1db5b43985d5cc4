"""The things that can be wrong with a chain, one function each; a fuzzer turns at most one of them."""

from __future__ import annotations

from pyvmm_virtio.constants import ring as r

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from random import Random

    from pyvmm_virtio.fuzz.writers import Writer

WRITE, NEXT, INDIRECT = r.VRING_DESC_F_WRITE, r.VRING_DESC_F_NEXT, r.VRING_DESC_F_INDIRECT


WIDTHS = (1, 2, 4, 4, 4, 8)
HEAD, TAIL = 64, 16
"""Fields are changed in so many bytes of a buffer: what a request says of itself stands there."""


class Plan:
    """A chain before it is written: buffers as [address, length, flags], and how to lay them out.

    Attributes:
        buffers: what a right driver offers, until a knob is turned.
        indirect: whether they go into a table.
        patches: changes to what is in the ring afterwards, each told the writer and where the descriptors are.
    """

    __slots__ = ("buffers", "indirect", "patches", "table_length")

    def __init__(self, buffers: list[list[int]], *, indirect: bool) -> None:
        self.buffers = buffers
        self.indirect = indirect
        self.table_length: int | None = None
        self.patches: list[Callable[[Writer, list[int]], None]] = []


def bad_address(chance: Random, plan: Plan, writer: Writer) -> None:
    """Move a buffer: to nowhere, over an end, to the top, into the rings."""
    buffer = chance.choice(plan.buffers)
    size = writer.size_of_memory
    buffer[0] = chance.choice(
        (
            *(size, size - 1, size - buffer[1] // 2, 1 << 40, 0, writer.desc),
            *(1 << 31, 1 << 32, 1 << 63, (1 << 63) - 1, (1 << 64) - 1, (1 << 64) - buffer[1]),
        )
    )


def bad_length(chance: Random, plan: Plan, writer: Writer) -> None:  # noqa: ARG001 - all knobs take the same
    """Make a buffer's length 0, one off, or huge."""
    buffer = chance.choice(plan.buffers)
    buffer[1] = chance.choice((0, 0, 1, buffer[1] - 1, buffer[1] + 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF))


def wrong_direction(chance: Random, plan: Plan, writer: Writer) -> None:  # noqa: ARG001 - all knobs take the same
    """Make a buffer readable instead of writable, or the reverse."""
    chance.choice(plan.buffers)[2] ^= WRITE


def missing_buffer(chance: Random, plan: Plan, writer: Writer) -> None:  # noqa: ARG001 - all knobs take the same
    """Leave one buffer out."""
    if len(plan.buffers) > 1:
        plan.buffers.pop(chance.randrange(len(plan.buffers)))


def wrong_order(chance: Random, plan: Plan, writer: Writer) -> None:  # noqa: ARG001 - all knobs take the same
    """Shuffle the buffers: writable ones before readable ones."""
    chance.shuffle(plan.buffers)


def shattered(chance: Random, plan: Plan, writer: Writer) -> None:  # noqa: ARG001 - all knobs take the same
    """Keep it right, but in pieces of a few bytes."""
    at = chance.randrange(len(plan.buffers))
    addr, length, flags = plan.buffers[at]
    step = max(1, length // 4)
    plan.buffers[at : at + 1] = [[addr + off, min(step, length - off), flags] for off in range(0, length, step)]


def boundaries(width: int) -> tuple[bytes, ...]:
    """Return what a field of so many bytes has at its ends: 0, 1, all ones, the sign bit and all others."""
    sign = 1 << 8 * width - 1
    values = (0, 1, 2 * sign - 1, sign, sign - 1)
    return (*[value.to_bytes(width, "little") for value in values], (1).to_bytes(width, "big"))


def boundary(chance: Random, plan: Plan, writer: Writer) -> None:
    """Give fields of what the device reads a value from the ends of their range: one, two, or all that there are.

    Nobody knows where fields are, so one begins anywhere that a compiler would put it, or now and then anywhere even.
    The rest of the request stays as it is: a check of another field does not hide what a device does with this one.
    """
    readable = [(addr, length) for addr, length, flags in plan.buffers if not flags & WRITE and length]
    if not readable:
        return
    if chance.randrange(2):
        readable = [chance.choice(readable)]
        if not chance.randrange(4):
            # what stands at the end, such as a checksum or a count
            readable = [(addr + max(0, length - TAIL), min(length, TAIL)) for addr, length in readable]
    data = [addr + at for addr, length in readable for at in range(min(length, HEAD))]
    width = chance.choice(WIDTHS)
    one, other = chance.choice(boundaries(width)), chance.choice(boundaries(width))
    if not chance.randrange(4):
        # every field there may be at once, wherever they are, and whichever value it is that matters; or two in turn
        value = one if chance.randrange(2) else one + other
        begin = chance.choice((0, 0, 1, 2)) if width > 1 else 0
        _put(writer, data[begin:], value * (len(data) // len(value) + 1))
        return
    step = min(width, 2) if not chance.randrange(4) else width
    # the first fields are the likely ones, and shall be frequent
    room = min(len(data), chance.choice((16, 32, HEAD)))
    fields = max(1, (room - width) // step + 1)
    _put(writer, data[chance.randrange(fields) * step :][:width], one)
    if chance.randrange(2):
        # what is compared with it, or added to it
        _put(writer, data[chance.randrange(fields) * step :][:width], other)


def _put(writer: Writer, places: list[int], value: bytes) -> None:
    """Write bytes to places that need not lie side by side: a field may cross from one buffer into the next."""
    for at, byte in zip(places, value, strict=False):
        writer.poke(at, bytes([byte]))


def scrambled_content(chance: Random, plan: Plan, writer: Writer) -> None:
    """Change a byte of what the device reads."""
    readable = [each for each in plan.buffers if not each[2] & WRITE and each[1]]
    if readable:
        addr, length, _ = chance.choice(readable)
        writer.poke(addr + chance.randrange(min(length, 16)), bytes([chance.randrange(256)]))


def same_memory(chance: Random, plan: Plan, writer: Writer) -> None:  # noqa: ARG001 - all knobs take the same
    """Lay two buffers over each other."""
    one, other = chance.choice(plan.buffers), chance.choice(plan.buffers)
    one[0] = other[0]


def too_long(chance: Random, plan: Plan, writer: Writer) -> None:  # noqa: ARG001 - all knobs take the same
    """Offer more buffers than the queue has descriptors."""
    plan.buffers *= 2 + writer.size // max(1, len(plan.buffers))
    plan.indirect = True


def bad_table_length(chance: Random, plan: Plan, writer: Writer) -> None:  # noqa: ARG001 - all knobs take the same
    """Give an indirect table an impossible length."""
    plan.indirect = True
    right = 16 * len(plan.buffers)
    plan.table_length = chance.choice((0, 1, 15, right + 1, right - 1, right + 16, 16 * 65536, 0x80000000, 0xFFFFFFF0))


def nested_table(chance: Random, plan: Plan, writer: Writer) -> None:  # noqa: ARG001 - all knobs take the same
    """Put an indirect descriptor into a table, or give one a link."""
    plan.indirect = bool(chance.randrange(2))
    chance.choice(plan.buffers)[2] |= INDIRECT


def bad_descriptor(chance: Random, plan: Plan, writer: Writer) -> None:  # noqa: ARG001 - all knobs take the same
    """Change some bytes of a descriptor."""
    at, value = chance.randrange(16), chance.randbytes(chance.choice((1, 2)))

    def patch(writer: Writer, places: list[int]) -> None:
        writer.poke(chance.choice(places) + min(at, 14), value)

    plan.patches.append(patch)


def bad_link(chance: Random, plan: Plan, writer: Writer) -> None:
    """Link out of the table, back, to itself, or where there was no link."""
    target = chance.choice((0, writer.size - 1, writer.size, 0xFFFF, chance.randrange(writer.size)))

    def patch(writer: Writer, places: list[int]) -> None:
        writer.relink(chance.choice(places), target)

    plan.patches.append(patch)


def bad_ring(chance: Random, plan: Plan, writer: Writer) -> None:  # noqa: ARG001 - all knobs take the same
    """Break the ring itself: an index that jumps, a head that is none, marks of the wrong turn."""
    plan.patches.append(lambda writer, _: writer.break_ring(chance))


def bad_event(chance: Random, plan: Plan, writer: Writer) -> None:  # noqa: ARG001 - all knobs take the same
    """Let notification suppression say anything."""
    writer.break_event(chance)


KNOBS: tuple[Callable[[Random, Plan, Writer], None], ...] = (
    bad_address,
    bad_length,
    wrong_direction,
    missing_buffer,
    wrong_order,
    shattered,
    scrambled_content,
    same_memory,
    too_long,
    bad_table_length,
    nested_table,
    bad_descriptor,
    bad_link,
    bad_ring,
    bad_event,
)
