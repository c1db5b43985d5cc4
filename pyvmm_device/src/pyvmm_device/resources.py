"""What a device needs of a machine, and what it was given."""

from __future__ import annotations

from pyvmm_device.bus import BusRange
from pyvmm_device.errors import InvalidResource

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias


class _Value:
    """Compares and shows itself by its slots."""

    __slots__: tuple[str, ...] = ()

    def _facts(self) -> tuple[object, ...]:
        slots = (name for kind in reversed(type(self).__mro__) for name in getattr(kind, "__slots__", ()))
        return tuple(getattr(self, name) for name in slots)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and self._facts() == other._facts()

    def __hash__(self) -> int:
        return hash((type(self), self._facts()))

    def __repr__(self) -> str:
        shown = (f"{v:#x}" if isinstance(v, int) and not isinstance(v, bool) else repr(v) for v in self._facts())
        return f"{type(self).__name__}({', '.join(shown)})"


class RangeConstraint(_Value):
    """Some addresses are needed.

    Args:
        size: in bytes.
        align: what the first address is a multiple of, a power of two.
        range: the addresses to choose from, first and last; ``(0x3f8, 0x3ff)`` with size 8 leaves no choice.

    Raises:
        InvalidResource: it can never be met.
    """

    __slots__ = ("size", "align", "range")  # noqa: RUF023 - the order of the arguments
    default_align = 1

    def __init__(self, size: int, align: int = 0, range: tuple[int, int] | None = None) -> None:  # noqa: A002 - vm-device's name
        align = align or self.default_align
        if size <= 0 or align <= 0 or align & (align - 1):
            raise InvalidResource(f"{size} bytes aligned to {align}: the size is above 0 and align is a power of two")
        if range is not None and not 0 <= range[0] <= range[1] - size + 1:
            raise InvalidResource(f"{size} bytes do not fit into {range[0]:#x}..{range[1]:#x}")
        self.size = size
        self.align = align
        self.range = range


class PioAddress(RangeConstraint):
    """Ports are needed."""

    __slots__ = ()


class MmioAddress(RangeConstraint):
    """Addresses are needed; a page of 4 KiB is the default alignment, so that a hypervisor can protect it."""

    __slots__ = ()
    default_align = 0x1000


class LegacyIrq(_Value):
    """An interrupt line is needed: a certain one, or any."""

    __slots__ = ("irq",)

    def __init__(self, irq: int | None = None) -> None:
        self.irq = irq


class MsiIrqs(_Value):
    """Message-signalled interrupts are needed; ``kind`` is "pci-msi", "pci-msix" or "generic"."""

    __slots__ = ("kind", "size")

    def __init__(self, kind: str, size: int) -> None:
        if kind not in ("pci-msi", "pci-msix", "generic") or size <= 0:
            raise InvalidResource(f"{size} interrupts of kind {kind!r}: there are pci-msi, pci-msix and generic")
        self.kind = kind
        self.size = size


class KvmMemSlot(_Value):
    """A slot of guest memory is needed: a certain one, or any."""

    __slots__ = ("slot",)

    def __init__(self, slot: int | None = None) -> None:
        self.slot = slot


class PciSlot(_Value):
    """A device number on the PCI bus is needed: a certain one, or any."""

    __slots__ = ("slot",)

    def __init__(self, slot: int | None = None) -> None:
        self.slot = slot


class PioAddressRange(BusRange):
    """Ports that were given."""

    __slots__ = ()


class MmioAddressRange(BusRange):
    """Addresses that were given."""

    __slots__ = ()


class GivenLegacyIrq(_Value):
    """An interrupt line that was given."""

    __slots__ = ("irq",)

    def __init__(self, irq: int) -> None:
        self.irq = irq


class GivenMsiIrqs(_Value):
    """Consecutive interrupts from ``base`` on that were given."""

    __slots__ = ("kind", "base", "size")  # noqa: RUF023 - the order of the arguments

    def __init__(self, kind: str, base: int, size: int) -> None:
        self.kind = kind
        self.base = base
        self.size = size


class GivenMemSlot(_Value):
    """A slot of guest memory that was given."""

    __slots__ = ("slot",)

    def __init__(self, slot: int) -> None:
        self.slot = slot


class GivenPciSlot(_Value):
    """A device number on the PCI bus that was given."""

    __slots__ = ("slot",)

    def __init__(self, slot: int) -> None:
        self.slot = slot


class MacAddress(_Value):
    """A network address in its usual spelling."""

    __slots__ = ("mac",)

    def __init__(self, mac: str) -> None:
        parts = mac.split(":")
        if len(parts) != 6 or not all(len(part) == 2 and set(part) <= set("0123456789abcdefABCDEF") for part in parts):
            raise InvalidResource(f"{mac!r} is no MAC address such as 52:54:00:12:34:56")
        self.mac = mac


if TYPE_CHECKING:
    Constraint: TypeAlias = PioAddress | MmioAddress | LegacyIrq | MsiIrqs | KvmMemSlot | PciSlot
    Resource: TypeAlias = (
        PioAddressRange | MmioAddressRange | GivenLegacyIrq | GivenMsiIrqs | GivenMemSlot | GivenPciSlot | MacAddress
    )


class DeviceResources:
    """Everything one device was given, in the order it asked.

    >>> given = DeviceResources()
    >>> given.append(PioAddressRange(0x3f8, 8))
    >>> given.append(GivenLegacyIrq(4))
    >>> given.get_pio_address_ranges(), given.get_legacy_irq()
    ([BusRange(0x3f8, 0x8)], 4)
    """

    __slots__ = ("_all",)

    def __init__(self) -> None:
        self._all: list[Resource] = []

    def append(self, entry: Resource) -> None:
        """Add one."""
        self._all.append(entry)

    def get_pio_address_ranges(self) -> list[BusRange]:
        """Return the ranges of ports."""
        return [entry for entry in self._all if isinstance(entry, PioAddressRange)]

    def get_mmio_address_ranges(self) -> list[BusRange]:
        """Return the ranges of addresses."""
        return [entry for entry in self._all if isinstance(entry, MmioAddressRange)]

    def get_legacy_irq(self) -> int | None:
        """Return the interrupt line, if there is one."""
        return next((entry.irq for entry in self._all if isinstance(entry, GivenLegacyIrq)), None)

    def get_msi_irqs(self, kind: str) -> tuple[int, int] | None:
        """Return (base, size) of the message-signalled interrupts of a kind, if there are any."""
        found = (entry for entry in self._all if isinstance(entry, GivenMsiIrqs) and entry.kind == kind)
        return next(((entry.base, entry.size) for entry in found), None)

    def get_pci_msi_irqs(self) -> tuple[int, int] | None:
        """Return (base, size) of the interrupts for MSI."""
        return self.get_msi_irqs("pci-msi")

    def get_pci_msix_irqs(self) -> tuple[int, int] | None:
        """Return (base, size) of the interrupts for MSI-X."""
        return self.get_msi_irqs("pci-msix")

    def get_generic_msi_irqs(self) -> tuple[int, int] | None:
        """Return (base, size) of interrupts by message without PCI."""
        return self.get_msi_irqs("generic")

    def get_kvm_mem_slots(self) -> list[int]:
        """Return the slots of guest memory."""
        return [entry.slot for entry in self._all if isinstance(entry, GivenMemSlot)]

    def get_pci_slot(self) -> int | None:
        """Return the device number on the PCI bus, if there is one."""
        return next((entry.slot for entry in self._all if isinstance(entry, GivenPciSlot)), None)

    def get_mac_address(self) -> str | None:
        """Return the network address, if there is one."""
        return next((entry.mac for entry in self._all if isinstance(entry, MacAddress)), None)

    def get_all_resources(self) -> list[Resource]:
        """Return everything."""
        return list(self._all)

    def __iter__(self) -> Iterator[Resource]:
        return iter(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __repr__(self) -> str:
        return f"DeviceResources({self._all!r})"
