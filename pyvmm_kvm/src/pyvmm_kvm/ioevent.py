"""Where an ioeventfd listens: a port or an address in guest physical memory."""

from __future__ import annotations


class IoEventAddress:
    """`IoEventAddress.Pio(port)` or `IoEventAddress.Mmio(address)`, as in kvm-ioctls.

    >>> IoEventAddress.Mmio(0xd0000050)
    IoEventAddress.Mmio(0xd0000050)
    """

    __slots__ = ("address",)
    __match_args__ = ("address",)
    _bits = 64

    Pio: type[IoEventAddress]
    Mmio: type[IoEventAddress]

    def __init__(self, address: int) -> None:
        if type(self) is IoEventAddress:
            raise TypeError("say IoEventAddress.Pio(port) or IoEventAddress.Mmio(address)")
        if not 0 <= address < 1 << self._bits:
            raise ValueError(f"{address:#x} has more than {self._bits} bits, or a sign")
        self.address = address

    def __eq__(self, other: object) -> bool:
        return (
            type(self) is type(other) and self.address == other.address if isinstance(other, IoEventAddress) else False
        )

    def __hash__(self) -> int:
        return hash((type(self).__name__, self.address))

    def __repr__(self) -> str:
        return f"IoEventAddress.{type(self).__name__}({self.address:#x})"


class _Pio(IoEventAddress):
    """A port, 0 to 0xffff."""

    __slots__ = ()
    _bits = 16


class _Mmio(IoEventAddress):
    """A guest physical address."""

    __slots__ = ()


_Pio.__name__, _Mmio.__name__ = "Pio", "Mmio"
IoEventAddress.Pio = _Pio
IoEventAddress.Mmio = _Mmio
