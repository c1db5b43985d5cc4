"""Listening to the descriptors of a back end, as long as that is of use."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm_device import EventLoop


class Watch:
    """What one part of a device waits for in the event loop: input, room for output, both or nothing.

    A descriptor that is ready and of which nobody takes notice would keep the loop awake, so a device listens only
    while it could do something with what comes, and says after each piece of work what it waits for now. It listens to
    nothing before a back end closes: the number may be another file's afterwards.

    Args:
        loop: the event loop; without one nothing is listened to.
        on_input: called when there is something to read, or an end.
        on_room: called when there is room to write; `on_input` where nothing is given.

    Attributes:
        reading: the descriptor of which input is waited for, or -1.
        writing: the descriptor of which room is waited for, or -1.

    >>> Watch(None, print).reading
    -1
    """

    __slots__ = ("_loop", "_on_input", "_on_room", "reading", "writing")

    def __init__(
        self, loop: EventLoop | None, on_input: Callable[[], object], on_room: Callable[[], object] | None = None
    ) -> None:
        self._loop = loop
        self._on_input = on_input
        self._on_room = on_room if on_room is not None else on_input
        self.reading = self.writing = -1

    def listen(self, reading: int = -1, writing: int = -1) -> None:
        """Wait for input of one descriptor and for room in another, or the same, and for nothing else; -1 is none."""
        loop = self._loop
        if loop is None:
            return
        if self.reading not in (reading, -1):
            loop.remove_reader(self.reading)
        if self.writing not in (writing, -1):
            loop.remove_writer(self.writing)
        if reading >= 0 and reading != self.reading:
            try:
                loop.add_reader(reading, self._on_input)
            except PermissionError:  # a regular file or /dev/null: there is always something, or never
                loop.call_soon(self._on_input)
                reading = -1
        if writing >= 0 and writing != self.writing:
            loop.add_writer(writing, self._on_room)
        self.reading, self.writing = reading, writing
