"""What VIRTIO 1.3 demands of a device, clause by clause, and what comes of it when a device is tried.

``python -m pyvmm_virtio.conformance DEVICE`` prints every MUST and MUST NOT that concerns the device, and for each the
result of a check that drives it, the test of this project that shows it, or why it does not apply. DEVICE is ``block``,
``net``, ``console``, ``rng``, or ``module:Class`` of a device of your own.

>>> from pyvmm_virtio.conformance import grade
>>> all(result.verdict != "FAIL" for result in grade("rng"))
True
"""

from __future__ import annotations

from pyvmm_virtio.conformance.clauses import CLAUSES, Clause, clauses_for
from pyvmm_virtio.conformance.grading import Result, grade

__all__ = ["CLAUSES", "Clause", "Result", "clauses_for", "grade"]
