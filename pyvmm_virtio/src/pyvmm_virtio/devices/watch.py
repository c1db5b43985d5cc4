"""Listening to the descriptors of a back end, as long as that is of use."""

from __future__ import annotations

from pyvmm_device.locks import DeferringLock

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm_device import EventLoop
    from pyvmm_device.event_loop import Registration
    from pyvmm_virtio.device import VirtioDevice


REST_SECONDS = 0.5
"""So long nothing is listened to after a descriptor was ready and then failed."""


class Watch:
    """What one part of a device waits for in the event loop: input, room for output, both or nothing.

    A descriptor that is ready and of which nobody takes notice would keep the loop awake, so a device listens only
    while it could do something with what comes, and says after each piece of work what it waits for now. It listens to
    nothing before a back end closes. Where a descriptor is ready and fails, as that of a network card that was taken
    away is and does for ever, it `rest`s before it looks again.

    Any thread may say what is waited for. The lock's outbox carries that out in the order in which it was said, one
    after another: what is registered in the end is what was said last.

    Args:
        loop: the event loop; without one nothing is listened to.
        on_input: called when there is something to read, or an end.
        on_room: called when there is room to write; `on_input` where nothing is given.

    Attributes:
        reading: the descriptor of which input is waited for, or -1.
        writing: the descriptor of which room is waited for, or -1.
        resting: whether nothing is listened to for a while, whatever is asked for.

    >>> Watch(None, print).reading
    -1
    """

    __slots__ = ("_lock", "_loop", "_on_input", "_on_room", "_reader", "_writer", "reading", "resting", "writing")

    def __init__(
        self, loop: EventLoop | None, on_input: Callable[[], object], on_room: Callable[[], object] | None = None
    ) -> None:
        self._loop = loop
        self._on_input = on_input
        self._on_room = on_room if on_room is not None else on_input
        self._lock = DeferringLock()
        # what is registered; changed by what the outbox runs alone
        self._reader: Registration | None = None
        self._writer: Registration | None = None
        self.reading = self.writing = -1
        self.resting = False

    def listen(self, reading: int = -1, writing: int = -1) -> None:
        """Wait for input of one descriptor and for room in another, or the same, and for nothing else; -1 is none."""
        if self.resting:
            reading = writing = -1
        if self._loop is None or (reading == self.reading and writing == self.writing):
            return
        with self._lock:
            self.reading, self.writing = reading, writing
            self._lock.after(self._settle, self._loop, reading, writing)

    def _settle(self, loop: EventLoop, reading: int, writing: int) -> None:
        """Be registered for just these."""
        if self._reader is not None and self._reader.fd != reading:
            self._reader.cancel()
            self._reader = None
        if self._writer is not None and self._writer.fd != writing:
            self._writer.cancel()
            self._writer = None
        if reading >= 0 and self._reader is None:
            try:
                self._reader = loop.add_reader(reading, self._on_input)
            except PermissionError:  # a regular file or /dev/null: there is always something, or never
                loop.call_soon(self._on_input)
                self.reading = -1 if self.reading == reading else self.reading
        if writing >= 0 and self._writer is None:
            self._writer = loop.add_writer(writing, self._on_room)

    def rest(self) -> None:
        """Listen to nothing for `REST_SECONDS`, and look again then: something that was ready failed."""
        if self._loop is not None and not self.resting:
            self.resting = True
            self._loop.call_later(REST_SECONDS, self._look_again)

    def _look_again(self) -> None:
        self.resting = False
        self._on_input()
        if self._on_room != self._on_input:
            self._on_room()

    def serve(self, device: VirtioDevice, pump: Callable[[], object]) -> None:
        """Have a device do what there is to do now that a descriptor is ready; it says then what it waits for.

        Where somebody else is within the device, or nobody is served, nothing is listened to until `pump` is called
        after all: the descriptor stays ready, and would keep the loop awake.
        """
        if not device.dispatch.serve_now(pump):
            self.listen()
            # once more, for whoever made that end may have called it before this listened to nothing
            device.serve(pump)
