"""One row of a boot plan: bytes at an address, what they are to the guest and why they are there."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal

    from typing_extensions import Buffer

    Role = Literal["kernel", "initrd", "module", "command line", "device tree", "data", "processor", "reserved"]

KERNEL: Role = "kernel"
"""What runs, or runs once it has unpacked itself there: a kernel, firmware, a program; the entry lies in it."""
INITRD: Role = "initrd"
MODULE: Role = "module"
CMDLINE: Role = "command line"
DEVICE_TREE: Role = "device tree"
DATA: Role = "data"
"""Whatever else the kernel reads: tables, boot information, services."""
PROCESSOR: Role = "processor"
"""What the processor reads by itself."""
RESERVED: Role = "reserved"
"""Memory that is kept free."""


class Placement:
    """Bytes at an address: `data` first, zeros up to `size`; `data` None only reserves the range.

    `name` and `why` are for people; `role`, one of this file's constants, says what it is to the guest. By default that
    is DATA, and RESERVED where there is no `data`.
    """

    __slots__ = ("data", "name", "role", "size", "start", "why")

    def __init__(
        self, start: int, size: int, name: str, why: str, data: Buffer | None = None, role: Role | None = None
    ) -> None:
        self.start = start
        self.size = size
        self.name = name
        self.why = why
        self.data = data
        self.role: Role = role or (RESERVED if data is None else DATA)

    @property
    def end(self) -> int:
        """The first address behind it."""
        return self.start + self.size

    def __repr__(self) -> str:
        return f"<Placement {self.name} {self.start:#x}..{self.end:#x}>"
