"""Events that a guest or a back end can cause without end: each kind is counted, and only its first is logged.

>>> refused = Tally(__name__)
>>> for number in range(3):
...     first = refused.count("interrupt", "interrupt %d is refused (others are only counted)", number)
>>> refused, refused["reset"]
({'interrupt': 3}, 0)
"""

from __future__ import annotations

from _thread import allocate_lock

WARNING, ERROR = 30, 40
"""The levels of `logging`, which is imported when there is something to say."""
MOST_KINDS = 256
OTHERS = "others"
"""What is counted where somebody makes up kinds without end: a name that a guest has chosen is no kind."""


class Tally(dict[str, int]):
    """How often each kind of event came: a dictionary that says 0 of a kind that never did; any thread may count.

    Args:
        logger: the name of the logger that gets the first of each kind: ``__name__`` of who counts.
    """

    __slots__ = ("_lock", "_logger")

    def __init__(self, logger: str) -> None:
        super().__init__()
        self._logger = logger
        self._lock = allocate_lock()

    def __missing__(self, kind: str) -> int:
        return 0

    def count(self, kind: str, message: str, *args: object, level: int = WARNING, amount: int = 1) -> bool:
        """Count an event, log the message if it is the first of its kind, and return whether it is.

        Args:
            kind: one of a few; a guest must not be able to make up more of them, and what is above `MOST_KINDS` is
                counted as `OTHERS`.
            message: for the log, with a ``%s`` for each of `args`; an exception among them is logged as its text.
            args: what the message is about.
            level: of the message: `WARNING` or `ERROR`.
            amount: how much to add where it is not events that are counted, but bytes.
        """
        with self._lock:
            if kind not in self and len(self) >= MOST_KINDS:
                kind = OTHERS
            first = kind not in self
            self[kind] = self[kind] + amount
        if first:
            import logging

            # somebody may keep the record, and the frames of an error hold views of guest memory
            texts = [str(arg) if isinstance(arg, BaseException) else arg for arg in args]
            logging.getLogger(self._logger).log(level, message, *texts)
        return first
