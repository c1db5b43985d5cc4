"""What can go wrong: what a guest did wrong, and what a program did wrong, apart.

`VirtqueueError` and its kind say that a driver broke the protocol. A device answers with DEVICE_NEEDS_RESET and goes on
living. `QueueConfigError` and `VirtioUsageError` are mistakes of the program that uses this package.
"""

from __future__ import annotations


class VirtioError(Exception):
    """The root of this package's errors."""


class VirtqueueError(VirtioError):
    """A driver broke the rules of its virtqueue.

    Attributes:
        queue: the number of the queue in its device.
        head: the head of the chain (the buffer id, in a packed ring), or None where there is none yet.
        index: what is at fault: a descriptor's place in its table or ring, the ring's index, or a buffer's place in
            the chain; None where it is no single one.
        reason: what is wrong, in words.
    """

    def __init__(self, queue: int, head: int | None, index: int | None, reason: str) -> None:
        where = f"queue {queue}" if head is None else f"queue {queue}, chain {head}"
        if index is not None:
            where += f", index {index}"
        super().__init__(f"{where}: {reason}")
        self.queue = queue
        self.head = head
        self.index = index
        self.reason = reason


class QueueNotReady(VirtqueueError):
    """The driver did not enable the queue, or did not say where it lies."""


class InvalidRing(VirtqueueError):
    """A part of the ring does not lie in one region of guest memory."""


class InvalidAvailRingIndex(VirtqueueError):
    """The driver claims to have offered more chains than the queue has descriptors."""


class InvalidDescriptorIndex(VirtqueueError):
    """A head or a link names a descriptor that does not exist, or a head is returned that was never taken."""


class InvalidChain(VirtqueueError):
    """A chain loops, is longer than the queue, or links what must not be linked."""


class DescriptorChainOverflow(InvalidChain):
    """The buffers of a chain have more than 2**32 bytes together."""


class InvalidIndirectDescriptor(InvalidChain):
    """An indirect descriptor where none may be: within a table, beside a link, or without the feature."""


class InvalidIndirectDescriptorTable(InvalidChain):
    """An indirect table is empty, is no multiple of 16 bytes, is too long, or lies outside guest memory."""


class InvalidBuffer(InvalidChain):
    """A buffer of a chain does not lie in guest memory."""


class BufferTooShort(InvalidChain):
    """A chain has fewer readable or writable bytes than the request needs.

    Raised by `Reader` and `Writer`; ``expected`` and ``available`` are in bytes.
    """

    def __init__(self, queue: int, head: int, expected: int, available: int) -> None:
        super().__init__(queue, head, None, f"{expected} bytes are needed and {available} are left in the buffers")
        self.expected = expected
        self.available = available


class ChainInFlight(InvalidChain):
    """A chain is offered again that the device has already, and has not given back."""


class RequestTooLarge(InvalidChain):
    """A request has more bytes than are copied at once where nobody said how many, or is in too many pieces."""


class QueueConfigError(VirtioError, ValueError):
    """A queue was given a size or an address it cannot have; raised by the ``try_set_`` methods."""


class InvalidMaxSize(QueueConfigError):
    """A queue's largest size is 1 to 32768, and a power of two in a split queue."""


class InvalidSize(QueueConfigError):
    """A queue's size is 1 to its largest, and a power of two in a split queue."""


class InvalidDescTableAlign(QueueConfigError):
    """The descriptor area is aligned to 16 bytes."""


class InvalidAvailRingAlign(QueueConfigError):
    """The driver area is aligned to 2 bytes (4 in a packed queue)."""


class InvalidUsedRingAlign(QueueConfigError):
    """The device area is aligned to 4 bytes."""


class VirtioUsageError(VirtioError):
    """This package was used in a way that cannot work; the message says what to do instead."""


class DeviceBusy(VirtioError):
    """A call of the device does not come to its end, as a back end does not, and somebody had to know what comes of it.

    The device is as it was.
    """


class SplitOutOfBounds(VirtioError, ValueError):
    """A reader or writer was split beyond its end."""
