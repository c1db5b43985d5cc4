"""Statements that decide what runs next.

Source: ACPI 6.5, 20.2.5.3.
"""

from __future__ import annotations

from pyvmm_loader.acpi.aml.term import ELSE, IF, Term, aml, body_of, package


class If(Term):
    """`If (condition) {...}`; an `Else` may follow it as the next term."""

    __slots__ = ("inside",)

    def __init__(self, condition: Term | int, *terms: Term) -> None:
        super().__init__(package(IF, aml(condition) + body_of(terms)))
        self.inside = terms


class Else(Term):
    """`Else {...}`, behind an `If`."""

    __slots__ = ("inside",)

    def __init__(self, *terms: Term) -> None:
        super().__init__(package(ELSE, body_of(terms)))
        self.inside = terms


class ElseIf(Else):
    """`ElseIf (condition) {...}`, with the `Else` that belongs to it, if any, as `otherwise`."""

    __slots__ = ()

    def __init__(self, condition: Term | int, *terms: Term, otherwise: Else | None = None) -> None:
        super().__init__(If(condition, *terms), *([] if otherwise is None else [otherwise]))


class While(Term):
    """`While (condition) {...}`."""

    __slots__ = ("inside",)

    def __init__(self, condition: Term | int, *terms: Term) -> None:
        super().__init__(package(b"\xa2", aml(condition) + body_of(terms)))
        self.inside = terms


class Return(Term):
    """`Return (value)`."""

    __slots__ = ()

    def __init__(self, value: Term | int | str | bytes = 0) -> None:
        super().__init__(b"\xa4" + aml(value))


class Break(Term):
    """`Break`, out of a `While`."""

    __slots__ = ()
    loops = True

    def __init__(self) -> None:
        super().__init__(b"\xa5")


class Continue(Term):
    """`Continue` with the next round of a `While`."""

    __slots__ = ()
    loops = True

    def __init__(self) -> None:
        super().__init__(b"\x9f")


class NoOp(Term):
    """`Noop`."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(b"\xa3")
