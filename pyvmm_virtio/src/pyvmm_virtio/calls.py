"""The calls of a device: what is made of a notification, a back end's word, or a time that has come.

`dispatch` says what holds; this is how a call is made, what comes after it, and what becomes of its errors.
"""

from __future__ import annotations

from pyvmm_device.tally import ERROR, Tally
from pyvmm_memory import GuestMemoryError
from pyvmm_virtio.errors import VirtqueueError
from pyvmm_virtio.interrupt import NoInterrupt
from pyvmm_virtio.turn import SLICE_BYTES, Turns

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm_virtio.interrupt import VirtioInterrupt
    from pyvmm_virtio.mailbox import Call
    from pyvmm_virtio.queue.chain import DescriptorChain
    from pyvmm_virtio.turn import Dispatched


class Calls(Turns):
    """Makes the calls of a device, and sees who comes next; its attributes are explained in `dispatch`."""

    __slots__ = (
        "_last",
        "active",
        "bugs",
        "coming",
        "epochs",
        "faults",
        "interrupt",
        "needs_reset",
        "paused",
        "resets",
    )

    def __init__(self, device: Dispatched, queues: int) -> None:
        super().__init__(device)
        self.active = False
        self.needs_reset = False
        self.paused = False
        self.interrupt: VirtioInterrupt = NoInterrupt()
        self.resets = 0
        self.epochs = [0] * queues
        self.bugs = 0
        self.faults = Tally(__name__)
        self.coming = False
        self._last = -1

    def serve(self, function: Callable[..., object], *arguments: object) -> bool:
        """Make a call, now or after what is under way; see `VirtioDevice.serve`."""
        if not self.is_served():
            return False
        if not self.sit():
            with self.lock:
                if not self.is_served():
                    return False
                self.calls.append((self._serve_later, (self.resets, function, arguments)))
                if not self.sit():
                    return True
                self.calls.pop()
        return self._serve_within(function, arguments)

    def serve_now(self, function: Callable[..., object], *arguments: object) -> bool | None:
        """Make a call as `serve`, or return None at once where somebody is within."""
        if not self.is_served():
            return False
        if not self.sit():
            return None
        return self._serve_within(function, arguments)

    def _serve_within(self, function: Callable[..., object], arguments: tuple[object, ...]) -> bool:
        try:
            if self.calls:
                self.make_waiting()
            return self._call(function, *arguments)
        finally:
            self.leave()

    def _serve_later(self, resets: int, function: Callable[..., object], arguments: tuple[object, ...]) -> None:
        if resets == self.resets:
            self._call(function, *arguments)

    def kick(self, index: int) -> None:
        """Take a notification of the driver; see `VirtioDevice.kick`."""
        # where it is not open, whatever ends that looks at every queue
        if not self.open or not 0 <= index < len(self.device.queues):
            return
        if not self.sit():
            with self.lock:
                if not self.open:
                    return
                self.owed.add(index)
                self.more = True
                if not self.sit():
                    return
            self.leave()
            return
        try:
            if self.coming:
                self.owe(index)
            else:
                self._turn(index)
        finally:
            self.leave()

    def finish(self, index: int, epoch: int, chain: DescriptorChain | int, length: int) -> bool:
        """Complete a request from a worker thread; see `VirtioDevice.finish`."""
        return self.is_current(index, epoch) and self.serve(self._finish, index, epoch, chain, length)

    def _finish(self, index: int, epoch: int, chain: DescriptorChain | int, length: int) -> None:
        if self.is_current(index, epoch):
            self.complete(index, chain, length)

    def is_current(self, index: int, epoch: int) -> bool:
        """Say whether a queue was not reset since its `epochs` entry was this."""
        return self.epochs[index] == epoch

    def is_served(self) -> bool:
        """Say whether a driver is served."""
        return self.active and not self.paused and not self.needs_reset

    def _turn(self, index: int) -> None:
        self._last = index
        self.owed.discard(index)
        if not self.open:
            return
        try:
            self.device.process_queue(index)
        except Exception as error:  # noqa: BLE001 - as in `_call`
            self._note(error)
        if self.completed:
            self.notify_driver()
        if self.room <= 0:
            self.more = True  # the slice is to be renewed

    def upcoming(self) -> Call | None:
        """Return how the next turn that is owed is come by."""
        loop = self.device.loop
        if loop is None:
            return (self._turn, (self._next_owed(),)) if self.owed and self.open else None
        if self.coming or not ((self.owed and self.open) or self.room <= 0):
            return None
        self.coming = True
        return loop.call_soon, (self._arrive,)

    def _next_owed(self) -> int:
        # those behind the last one come first, so that all have their turn
        return min((index for index in self.owed if index > self._last), default=min(self.owed))

    def _arrive(self) -> None:
        with self.lock:
            self.coming = False
            self.room = SLICE_BYTES
            if not self.owed or not self.open:
                return
            # for whoever is within, who sets out again when it leaves, and for others that are owed one
            self.more = True
            if not self.sit():
                return
            index = self._next_owed()
        try:
            self._turn(index)
        finally:
            self.leave()

    def _call(self, function: Callable[..., object], *arguments: object) -> bool:
        """Do what `serve` says, within."""
        if not self.active or self.paused or self.needs_reset:
            return False
        try:
            function(*arguments)
        except Exception as error:  # noqa: BLE001 - a subclass has written it, and this is the thread of a vCPU
            self._note(error)
        if self.completed:
            self.notify_driver()
        if self.room <= 0:
            self.more = True
        return not self.needs_reset

    def notify_driver(self) -> None:
        """Interrupt the driver for each queue in which something was given back, where it wants that."""
        device = self.device
        while self.completed:
            index = self.completed.pop()
            try:
                wanted = device.queues[index].needs_notification(device.memory)
            except Exception as error:  # noqa: BLE001 - as in `_call`
                self._note(error)
                continue
            if wanted:
                try:
                    self.interrupt.signal_queue(index)
                except Exception as error:  # noqa: BLE001 - as in `tell`
                    self._lose(error)

    def tell(self, signal: Callable[..., object], *arguments: int) -> None:
        """Interrupt the driver; what is wrong with the way to it is counted, and the device goes on."""
        try:
            signal(*arguments)
        except Exception as error:  # noqa: BLE001 - a machine has written it, and the request is done
            self._lose(error)

    def _lose(self, error: Exception) -> None:
        message = "%r: an interrupt is lost (later ones are only counted): %s"
        self.faults.count("interrupt", message, self.device, repr(error), level=ERROR)

    def tell_config(self) -> None:
        """Tell the driver, where there is one, that the configuration or the status changed."""
        if self.active:
            self.tell(self.interrupt.signal_config)

    def guard(self, function: Callable[..., object], *arguments: object) -> None:
        """Call what a subclass has written: nothing that goes wrong there may end the thread of a vCPU."""
        try:
            function(*arguments)
        except Exception as error:  # noqa: BLE001 - as in `_call`
            self._note(error)

    def failed(self, error: Exception) -> None:
        """Take what came out of a call that waited."""
        self._note(error)

    def _note(self, error: Exception) -> None:
        """Take an error out of a subclass: the driver's, or else the device's own, which is shown once."""
        if not isinstance(error, (VirtqueueError, GuestMemoryError)):
            self.bugs += 1
            kind = type(error).__name__
            text = "" if kind in self.faults else _trace(error)
            message = "%r: an error of its own (others of this kind are only counted)\n%s"
            self.faults.count(kind, message, self.device, text, level=ERROR)
        self.device.fail(error)


def _trace(error: Exception) -> str:
    """Return how an error came about, as text: somebody may keep it, and the frames hold views of guest memory."""
    from traceback import format_exception

    return "".join(format_exception(error))
