"""Where in the guest an ioeventfd listens."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Self


class IoEventAddress:
    """A port or a guest-physical address; made by `IoEventAddress.Pio` or `IoEventAddress.Mmio`."""

    __slots__ = ("address", "is_pio")

    def __init__(self, address: int, is_pio: bool) -> None:
        self.address = address
        self.is_pio = is_pio

    @classmethod
    def Pio(cls, port: int) -> Self:  # noqa: N802 (the names of the variants in rust-vmm)
        """Return the address of an I/O port."""
        return cls(port, True)

    @classmethod
    def Mmio(cls, address: int) -> Self:  # noqa: N802
        """Return a guest-physical address."""
        return cls(address, False)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, IoEventAddress):
            return NotImplemented
        return (self.address, self.is_pio) == (other.address, other.is_pio)

    def __hash__(self) -> int:
        return hash((self.address, self.is_pio))

    def __repr__(self) -> str:
        return f"IoEventAddress.{'Pio' if self.is_pio else 'Mmio'}({self.address:#x})"
