"""The guest's side in Python: it finds a device, negotiates with it and drives it, as a guest's kernel would.

It needs no guest and no KVM. It acts through register accesses on a bus and through memory, never through the device
object, so what works here is what a guest can do. Tests, fuzzers, benchmarks and lessons use it:

>>> from pyvmm_virtio.device import VirtioDevice
>>> from pyvmm_virtio.driver import drive
>>> class Reverse(VirtioDevice):
...     device_type = 42
...     queue_max_sizes = (64,)
...     def process_queue(self, index):
...         for chain in self.chains(index):
...             answer = chain.reader(self.memory).read()[::-1]
...             self.complete(index, chain, chain.writer(self.memory).write(answer))
>>> with drive(Reverse(), transport="pci", ring="packed") as driver:
...     driver.request(0, b"live", into=4)
b'evil'

`drive` returns a `Driver`, or the one that knows the device's type: `BlockDriver`, `NetDriver`, `ConsoleDriver`,
`RngDriver`.
"""

from __future__ import annotations

from pyvmm_virtio.driver.drive import drive
from pyvmm_virtio.driver.driver import Driver, DriverError, Request

__all__ = ["Driver", "DriverError", "Request", "drive"]
