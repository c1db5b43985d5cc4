"""The requests of a disk that were taken and are not answered, and where each of them is.

A request is done in *steps*, each of a size that does not take long. It is in the table from when it is taken until it
is answered, and

- *runs* while a step of it is at the back end, of which it holds the `token`, or where it has steps left and waits for
  the next slice of a disk that works here;
- is *kept* when the device comes to rest before it is done: the back end gave it up, its memory is let go, and it
  begins anew when the device is served again, here or in another process that gets the table as `state`. To begin anew
  is right because the driver was told nothing yet: its buffers are as it left them, or not its to look at;
- is *dropped* when its driver takes it back: nothing of it is done any more, and it is in the table no longer.

A back end cannot always give up what it was given, as the kernel may hold it with the memory that it fills. It calls
back when it lets go, from any thread. Until then one that is kept does not begin anew, or an old write might follow a
newer one; and one that was dropped is counted in the device's `in_flight`, for which its reset waits. `_lock` is for
that alone: what a request is, its token, and whether it is counted, change together.
"""

from __future__ import annotations

from time import monotonic

from pyvmm_device.locks import Lock
from pyvmm_device.state import Kind, array, record, uint
from pyvmm_memory import GuestMemoryError
from pyvmm_virtio.backends.block import DISCARD, FLUSH, PIECE, READ, WRITE, ZERO_UNMAP
from pyvmm_virtio.constants import block as c
from pyvmm_virtio.constants.ring import VRING_DESC_F_INDIRECT
from pyvmm_virtio.errors import VirtqueueError
from pyvmm_virtio.in_flight import InFlight
from pyvmm_virtio.queue.base import MAX_QUEUE_SIZE
from pyvmm_virtio.queue.chain import DescriptorChain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any, Protocol

    from pyvmm_virtio.backends.block import AsyncBlockBackend, BlockBackend
    from pyvmm_virtio.devices.block.request import Request, Step
    from pyvmm_virtio.dispatch import Dispatcher
    from pyvmm_virtio.memory import GuestMemory
    from pyvmm_virtio.queue.protocol import Queue

    class Disk(Protocol):
        """The device, as far as this is concerned."""

        dispatch: Dispatcher
        in_flight: InFlight | None

        @property
        def memory(self) -> GuestMemory:
            """What its driver lets it use."""
            ...

        @property
        def needs_reset(self) -> bool:
            """Whether its driver did what only a reset heals."""
            ...

        def serve(self, function: Any, *arguments: object) -> bool:  # noqa: ANN401 - any function
            """Make a call."""
            ...

        def begin_again(self, chain: DescriptorChain) -> Request | None:
            """Return the request of a chain, with what there is to do, or None where it was answered at once."""
            ...

        def fail(self, error: Exception) -> None:
            """Take an error of its driver."""
            ...

        def log_failure(self, what: str, error: OSError) -> None:
            """Say what a back end could not do."""
            ...


RUNS, KEPT, DROPPED = range(3)
OK, IOERR = c.VIRTIO_BLK_S_OK, c.VIRTIO_BLK_S_IOERR
QUIESCE_SECONDS = 0.4
"""How long a device that comes to rest waits for what is under way."""
GIVE_UP_SECONDS = 30.0
"""How long a kick without an event loop waits for a server, before the disk is given up."""
LOOK_SECONDS = 0.05
"""How often it looks whether somebody wants it to leave."""


def _load_descriptor(value: object) -> tuple[int, int, int, int]:
    addr, length, flags, following = _NUMBERS.load(value)
    if addr >> 64 or length >> 32 or flags >> 16 or following >> 16 or flags & VRING_DESC_F_INDIRECT:
        raise ValueError("it is no descriptor of a buffer")
    return addr, length, flags, following


_NUMBERS = array(uint(64), 4, 4)
STATE = array(
    record(
        {
            "queue": uint(16),
            "head": uint(16),
            "descriptors": array(Kind("a descriptor", list, _load_descriptor), MAX_QUEUE_SIZE, 1),
        }
    ),
    1 << 16,
)
"""What a state says of requests that were taken and not answered."""


class Taken:
    """One entry of the table.

    Attributes:
        chain: the request's.
        request: taken apart, or None where its memory was let go.
        where: RUNS, KEPT or DROPPED.
        token: the back end's for the step that it has, or None where it has none.
        counted: whether it is counted in the device's `in_flight`.
        result: what the back end said of a step before `submit` returned; None where it did not.
    """

    __slots__ = ("chain", "counted", "request", "result", "submitting", "token", "where")

    def __init__(self, chain: DescriptorChain, request: Request | None, where: int) -> None:
        self.chain = chain
        self.request = request
        self.where = where
        self.token: object = None
        self.counted = False
        self.submitting = False
        self.result: int | None = None


class UnderWay:
    """The table of one device, and what moves its entries on; the file's head says how.

    Everything is called within calls of the device, but what a back end calls when it lets go.

    Args:
        device: the device.
        disk: its back end.
        queues: how many queues it has.
    """

    def __init__(self, device: Disk, disk: BlockBackend, queues: int) -> None:
        self._device = device
        self._disk = disk
        # told apart by the method
        self._async: AsyncBlockBackend | None = disk if hasattr(disk, "submit") else None  # type: ignore[assignment]
        self._table: list[dict[int, Taken]] = [{} for _ in range(queues)]
        # those of them that wait for a slice, or to begin anew
        self._stalled: list[dict[int, Taken]] = [{} for _ in range(queues)]
        self._lock = Lock()
        self._in_flight = device.in_flight = InFlight()

    def __len__(self) -> int:
        return sum(map(len, self._table))

    def has(self, index: int) -> bool:
        """Say whether requests of a queue are under way."""
        return bool(self._table[index])

    def is_stalled(self, index: int) -> bool:
        """Say whether requests of a queue wait for `go_on`."""
        return bool(self._stalled[index])

    # beginning, and going on

    def begin(self, chain: DescriptorChain, request: Request) -> None:
        """Do what a request asks for, as far as it comes now."""
        taken = Taken(chain, request, RUNS)
        self._table[request.queue][request.head] = taken
        self._go_on(taken)

    def go_on(self, index: int) -> bool:
        """Go on with what was taken of a queue before; returns whether there is room for more."""
        stalled = self._stalled[index]
        for head in list(stalled):
            if not self._may_go_on():
                break
            taken = stalled.pop(head)
            if taken.token is None:  # else the back end has not let go of it, and says so when it does
                self._begin_again(taken)
                if self._look_up(taken):
                    self._go_on(taken)
        if self._may_go_on():
            return True
        self._device.dispatch.owe(index)
        return False

    def _may_go_on(self) -> bool:
        dispatch = self._device.dispatch
        return dispatch.open and dispatch.has_room()

    def _begin_again(self, taken: Taken) -> None:
        if taken.where == KEPT:
            taken.request = self._device.begin_again(taken.chain)
            taken.where = RUNS
            if taken.request is None:
                del self._table[taken.chain.queue_index][taken.chain.head_index]

    def _look_up(self, taken: Taken) -> bool:
        """Have a request's buffers in guest memory as it is now; false where there are none any more.

        While others had their turn, or a back end its time, the driver may have taken back what it let the device use.
        """
        request = taken.request
        if request is not None:
            try:
                request.look_up(self._device.memory, taken.chain)
            except (VirtqueueError, GuestMemoryError) as error:
                self._forget(taken, request)
                self._device.fail(error)
                return False
        return True

    def _go_on(self, taken: Taken) -> None:
        """Do steps until one takes its time, or the slice is used up, or all are done."""
        request = taken.request
        if request is None:
            return
        while self._may_go_on():
            step = request.take_step()
            if step is None:
                self._answer(taken, request, OK)
                return
            if self._async is not None:
                self._submit(self._async, taken, request, step)
                if taken.result is None:
                    return
                if not taken.result:
                    self._charge(step)  # it was done here
                error = failure(taken.result)
            else:
                error = self._do(request, step)
            if not self._end_step(taken, request, step, error):
                return
        self._stalled[request.queue][request.head] = taken
        self._device.dispatch.owe(request.queue)

    def _charge(self, step: Step) -> None:
        """Have a step that is done in this slice count for what it moves."""
        op, _, length = step
        self._device.dispatch.room -= length if op in (READ, WRITE) else PIECE

    def _do(self, request: Request, step: Step) -> OSError | None:
        """Do a step here and now; returns the error."""
        op, offset, length = step
        disk = self._disk
        self._charge(step)
        try:
            if op == READ:
                disk.readv(request.views(step), offset)
            elif op == WRITE:
                disk.writev(request.views(step), offset)
            elif op == FLUSH:
                disk.flush()
            elif op == DISCARD:
                disk.discard(offset, length)
            else:
                disk.write_zeroes(offset, length, op == ZERO_UNMAP)
        except OSError as error:
            return error.with_traceback(None)  # its frames hold views of guest memory
        return None

    def _end_step(self, taken: Taken, request: Request, step: Step, error: OSError | None) -> bool:
        """Note that a step is over; returns whether to go on with the request."""
        request.end_step(step, done=error is None)
        if self._device.needs_reset:
            self._forget(taken, request)  # the driver will take its memory back
        elif error is not None:
            self._device.log_failure("request", error)
            self._answer(taken, request, IOERR)
        else:
            return True
        return False

    def _answer(self, taken: Taken, request: Request, status: int) -> None:
        self._device.dispatch.complete(request.queue, request.head, request.finish(status))
        self._forget(taken, request)

    def _forget(self, taken: Taken, request: Request) -> None:
        self._table[request.queue].pop(request.head, None)
        taken.request = None
        request.release()

    # a back end with many requests under way

    def _submit(self, disk: AsyncBlockBackend, taken: Taken, request: Request, step: Step) -> None:
        taken.result, taken.submitting = None, True
        op, offset, length = step
        token = disk.submit(op, request.views(step), offset, length, lambda error: self._done(taken, step, error))
        taken.submitting = False
        if taken.result is None:
            taken.token = taken if token is None else token

    def _done(self, taken: Taken, step: Step, error: int) -> None:
        """Be told of the end of a step: within, from wherever `submit` and `on_ready` say; else from any thread."""
        if taken.submitting:
            taken.result = error
            return
        with self._lock:
            where, taken.token = taken.where, None
            counted, taken.counted = taken.counted, False
        request = taken.request
        if where == RUNS:
            if request is not None and self._look_up(taken) and self._end_step(taken, request, step, failure(error)):
                self._go_on(taken)
            return
        # it was given up, and this may be a thread of the back end
        taken.request = None
        if request is not None:
            request.end_step(step, done=False)
            request.release()
        if counted:
            self._in_flight.__exit__(None, None, None)
        if where == KEPT:
            self._device.serve(self._let_go, taken)

    def _let_go(self, taken: Taken) -> None:
        """Go on with one that was kept, and of which the back end has let go only now."""
        index, head = taken.chain.queue_index, taken.chain.head_index
        if self._table[index].get(head) is taken:
            self._stalled[index][head] = taken
            self.go_on(index)

    def _give_up(self, taken: Taken, where: int) -> None:
        """Have the back end give a request up, to be kept or dropped."""
        counting = where == DROPPED
        if counting:
            # before the question, for the answer may come while it is asked
            self._in_flight.__enter__()
        with self._lock:
            taken.where = where
            token = taken.token
            taken.counted = counting and token is not None
        if counting and token is None:
            self._in_flight.__exit__(None, None, None)
        if token is not None and not self._cancel(token):
            return
        with self._lock:
            taken.token = None
            counted, taken.counted = taken.counted, False
            request, taken.request = taken.request, None
        if counted:
            self._in_flight.__exit__(None, None, None)
        if request is not None:
            request.release()

    def _cancel(self, token: object) -> bool:
        cancel = getattr(self._async, "cancel", None)  # a back end may be older than that
        return cancel is not None and bool(cancel(token))

    def drop(self, index: int | None) -> None:
        """Drop the requests of a queue, or of all: their driver takes them back."""
        for table in self._table if index is None else [self._table[index]]:
            dropped = list(table.values())
            table.clear()
            for taken in dropped:
                self._stalled[taken.chain.queue_index].pop(taken.chain.head_index, None)
                self._give_up(taken, DROPPED)
        if self._async is not None and len(self._in_flight) and not hasattr(self._async, "cancel"):
            self._async.drain(QUIESCE_SECONDS)

    def keep(self) -> None:
        """Wait a moment for what is under way, and keep the rest: the device comes to rest."""
        if self._async is not None and len(self):
            self._wait(self._async, QUIESCE_SECONDS)
        for index, table in enumerate(self._table):
            for head, taken in table.items():
                if taken.where == RUNS:
                    self._give_up(taken, KEPT)
                self._stalled[index][head] = taken

    def wait(self) -> None:
        """Work until all is done, where there is no event loop to do it; leave when somebody wants in."""
        disk = self._async
        if disk is None or not any(self._table):
            return
        deadline = monotonic() + GIVE_UP_SECONDS
        while any(self._table) and not self._wait(disk, LOOK_SECONDS):
            if not self._device.dispatch.open:
                return
            if monotonic() > deadline:
                disk.drain(0)

    def _wait(self, disk: AsyncBlockBackend, seconds: float) -> bool:
        wait = getattr(disk, "wait", None)
        if wait is not None:
            return bool(wait(seconds))
        disk.drain(max(seconds, QUIESCE_SECONDS))
        return True

    # state

    def state(self) -> list[dict[str, Any]]:
        """Return the requests that are there, each with its descriptors, of the kind `STATE`."""
        return [
            {"queue": index, "head": head, "descriptors": [list(raw) for raw in taken.chain.raw]}
            for index, table in enumerate(self._table)
            for head, taken in table.items()
        ]

    def restore(self, requests: list[dict[str, Any]]) -> None:
        """Keep the requests of a state, to begin anew."""
        for index, table in enumerate(self._table):
            table.clear()
            self._stalled[index].clear()
        for entry in requests:
            index, head = entry["queue"], entry["head"]
            taken = Taken(DescriptorChain(head, entry["descriptors"], index), None, KEPT)
            self._table[index][head] = self._stalled[index][head] = taken


def failure(error: int) -> OSError | None:
    """Return what a back end said as an error."""
    import os

    return OSError(error, os.strerror(error)) if error else None


def not_taken(requests: list[dict[str, Any]], queues: Sequence[Queue]) -> str | None:
    """Return which of a state's requests is none that was taken from the queues of a device that is served, or None."""
    for entry in requests:
        index, head = entry["queue"], entry["head"]
        if index >= len(queues) or head not in queues[index].in_flight:
            return f"request {head} of queue {index} was not taken from there"
    return None


def check_requests(requests: list[dict[str, Any]], queues: int) -> str | None:
    """Return what is wrong with the requests of a state, each of which is of the kind `STATE`, or None."""
    named = {(entry["queue"], entry["head"]) for entry in requests}
    if len(named) != len(requests):
        return "a request is there twice"
    if any(index >= queues for index, _ in named):
        return "a request is of a queue that is not there"
    return None
