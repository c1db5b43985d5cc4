"""Grading a device: every clause that concerns it, with the result of its check."""

from __future__ import annotations

from pyvmm_virtio.conformance import checks
from pyvmm_virtio.conformance.bench import Bench, CheckFailed, NotHere, dispose
from pyvmm_virtio.conformance.clauses import clauses_for
from pyvmm_virtio.samples import make

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm_virtio.conformance.clauses import Clause
    from pyvmm_virtio.device import VirtioDevice

OK, FAIL, TEST, NOT_HERE = "ok", "FAIL", "tested", "n/a"


class Result:
    """What is known of a clause.

    Attributes:
        clause: which.
        verdict: "ok" or "FAIL" where a check was made, "tested" where a test of this project shows it, "n/a" where it
            does not apply or cannot be seen on this device.
        details: what failed, which test, or why not.
    """

    __slots__ = ("clause", "details", "verdict")

    def __init__(self, clause: Clause, verdict: str, details: str) -> None:
        self.clause = clause
        self.verdict = verdict
        self.details = details

    def __repr__(self) -> str:
        return f"<Result {self.clause.section} {self.verdict}: {self.details}>"


def grade(device: str | Callable[[], VirtioDevice]) -> list[Result]:
    """Try every check that concerns a device.

    Args:
        device: its name (see `subjects.make`), or a function that makes one.
    """
    maker: Callable[[], VirtioDevice] = (lambda: make(device)) if isinstance(device, str) else device
    first = maker()
    device_type = first.device_type
    dispose(first)
    done: dict[str, tuple[str, str]] = {}
    results: list[Result] = []
    for clause in clauses_for(device_type):
        if clause.check:
            if clause.check not in done:
                done[clause.check] = run(clause.check, maker)
            results.append(Result(clause, *done[clause.check]))
        elif clause.test:
            results.append(Result(clause, TEST, clause.test))
        else:
            results.append(Result(clause, NOT_HERE, clause.why))
    return results


def run(name: str, maker: Callable[[], VirtioDevice]) -> tuple[str, str]:
    """Make one check on every transport and ring it is about; return the verdict and the details."""
    check = checks.CHECKS[name]
    seen: list[str] = []
    for transport in check.transports:
        for ring in check.rings:
            where = f"{transport}, {ring}"
            bench = Bench(maker, transport, ring)
            try:
                check.function(bench)
            except NotHere as reason:
                return NOT_HERE, str(reason)
            except CheckFailed as failure:
                return FAIL, f"{where}: {failure}"
            except Exception as error:  # noqa: BLE001 - a device of somebody's own may do anything, and is told what
                return FAIL, f"{where}: {type(error).__name__}: {error}"
            finally:
                bench.close()
            seen.append(where)
    return OK, f"{name} ({'; '.join(seen)})"
