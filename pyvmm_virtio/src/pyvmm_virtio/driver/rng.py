"""A driver of entropy devices (VIRTIO 1.3, 5.4)."""

from __future__ import annotations

from pyvmm_virtio.driver.driver import Driver


class RngDriver(Driver):
    """Asks for random bytes."""

    def read(self, size: int) -> bytes:
        """Return random bytes, at least one and at most `size`."""
        return self.request(0, into=size)

    def read_exact(self, size: int) -> bytes:
        """Return as many random bytes as asked for, in as many requests as that takes."""
        data = b""
        while len(data) < size:
            data += self.read(size - len(data))
        return data
