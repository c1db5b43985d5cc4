"""A fuzzer that knows the structure of rings and requests: mostly right, with one rare thing wrong in each.

Every second request has a field, two of them, or all at an end of their range besides (0, 1, all ones, the sign bit),
for that is where a division, a shift or a subtraction goes wrong, and chance alone does not find 0 in 32 bits.

``python -m pyvmm_virtio.fuzz DEVICE`` runs it on a device of this package or of yours. After every batch of chains it
looks that no exception came out of the device and that nothing was written outside the buffers offered; after every
reset, that the device works again. A run is repeated by its seed.

>>> from pyvmm_virtio.fuzz import Fuzzer
>>> from pyvmm_virtio.samples import make
>>> with Fuzzer(make("rng"), "pci", "packed", seed=1) as fuzzer:
...     report = fuzzer.run(200)
>>> report.chains
200
"""

from __future__ import annotations

from pyvmm_virtio.fuzz.fuzzer import Finding, Fuzzer, Report

__all__ = ["Finding", "Fuzzer", "Report"]
