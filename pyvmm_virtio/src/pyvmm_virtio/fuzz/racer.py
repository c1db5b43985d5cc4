"""A second processor of the guest, which changes descriptors while the device looks at them."""

from __future__ import annotations

import time
from random import Random
from threading import Condition, Thread

from pyvmm_virtio.constants.ring import VRING_DESC_F_NEXT, VRING_DESC_F_WRITE
from pyvmm_virtio.fuzz.layout import BATCH, END, TABLE_ROOM, TABLES

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

    from pyvmm_virtio.fuzz.writers import Writer

START_SECONDS = 1


class Racer(Thread):
    """Copies descriptors over each other, and turns directions and links, while its ``with`` block lasts.

    Every address it writes was offered, with a length that was offered, if not together.

    Args:
        writers: returns the writers of the rings as they are now: others after each reset.
        seed: of chance.
    """

    def __init__(self, writers: Callable[[], Sequence[Writer]], seed: int) -> None:
        super().__init__(name="racer", daemon=True)
        self.writers = writers
        self.chance = Random(seed)
        self.changes = 0
        self._changed = Condition()
        self._free = False
        self._busy = False
        self._over = False

    def areas(self) -> list[tuple[int, int]]:
        """Return what the device may write when nobody knows what it saw, or the racer itself, as (address, length)."""
        rings = [(writer.desc, 16 * writer.size) for writer in self.writers()]
        return [(TABLES, END - TABLES), *rings]

    def run(self) -> None:
        """Change something, again and again."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._free or self._over)
                if self._over:
                    return
                self._busy = True
            for _ in range(4):
                self._change()
            with self._changed:
                self._busy = False
                self._changed.notify_all()
            time.sleep(0)

    def _change(self) -> None:
        chance, writer = self.chance, self.chance.choice(self.writers())
        if chance.randrange(2):
            table, count = writer.desc, writer.size
        else:
            table, count = TABLES + TABLE_ROOM * chance.randrange(BATCH), 4
        one, other = table + 16 * chance.randrange(count), table + 16 * chance.randrange(count)
        if chance.randrange(2):
            # not the last two bytes: they say whose a packed descriptor is
            writer.poke(one, bytes(writer.view[other : other + 12]))
        else:
            at = one + (14 if writer.packed else 12)
            writer.poke(at, bytes([writer.view[at] ^ chance.choice((VRING_DESC_F_NEXT, VRING_DESC_F_WRITE))]))
        self.changes += 1

    def stop(self) -> None:
        """End the thread."""
        with self._changed:
            self._over = True
            self._changed.notify_all()
        self.join()

    def __enter__(self) -> None:
        with self._changed:
            self._free = True
            self._changed.notify_all()
            if not self.changes:
                # on a busy machine the thread may not have run yet when all is over
                self._changed.wait_for(lambda: self.changes, START_SECONDS)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._free = False
            self._changed.wait_for(lambda: not self._busy)
