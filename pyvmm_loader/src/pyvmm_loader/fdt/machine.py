"""What the device trees of both virt machines share: memory, chosen, virtio-mmio, PCIe."""

from __future__ import annotations

from pyvmm_loader.fdt.node import FdtError, cells64
from pyvmm_loader.fdt.tree import Fdt
from pyvmm_loader.fields import pack

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from typing import Protocol, Self

    from pyvmm_loader.fdt.node import Node

    class Layout(Protocol):
        """A module that says where the parts of a PCIe host bridge are."""

        PCIE_ECAM: int
        PCIE_ECAM_SIZE: int
        PCIE_MMIO: int
        PCIE_MMIO_SIZE: int
        PCIE_IO: int
        PCIE_IO_SIZE: int
        PCIE_MMIO64: int
        PCIE_MMIO64_SIZE: int


PINS = 4
RANGE_IO, RANGE_MEM32, RANGE_MEM64 = 0x01000000, 0x02000000, 0x03000000
"""The first cell of a PCI address: the space. IEEE 1275 PCI binding, 2.2.1.1."""


def new_tree(compatible: str, model: str) -> Fdt:
    """Return a tree whose addresses and sizes have 64 bits."""
    tree = Fdt()
    tree.root["compatible"] = compatible
    tree.root["model"] = model
    tree.root["#address-cells"] = 2
    tree.root["#size-cells"] = 2
    return tree


class Chosen:
    """What the boot loader decides: command line, where the initrd is, the console, and a seed for the generator."""

    __slots__ = ("cmdline", "initrd", "rng_seed")

    def __init__(self, cmdline: str = "", initrd: tuple[int, int] | None = None, rng_seed: bytes = b"") -> None:
        self.cmdline = cmdline
        self.initrd = initrd
        self.rng_seed = rng_seed

    def add_to(self, root: Node, console: str) -> None:
        """Add `/chosen`; `console` is the path of its serial port. `initrd` is (address, size)."""
        node = root.add("chosen")
        node["bootargs"] = self.cmdline
        node["stdout-path"] = console
        if self.initrd is not None:
            start, size = self.initrd
            node["linux,initrd-start"] = cells64(start)
            node["linux,initrd-end"] = cells64(start + size)
        if self.rng_seed:
            node["rng-seed"] = self.rng_seed


def add_memory(root: Node, ranges: Sequence[tuple[int, int]]) -> None:
    """Add a memory node for each (start, size) pair; raises FdtError for what is empty, overlaps or leaves 64 bits."""
    end = 0
    for start, size in sorted(ranges):
        cells64(start, size)
        if not size or start < end or start + size > 1 << 64:
            raise FdtError(
                f"memory of {size:#x} bytes at {start:#x} is empty, overlaps other or leaves 64 bits",
                field="reg",
                value=(start, size),
            )
        end = start + size
    for start, size in ranges:
        node = root.add(f"memory@{start:x}")
        node["device_type"] = "memory"
        node["reg"] = cells64(start, size)


def add_virtio_mmio(parent: Node, base: int, size: int, interrupt: list[int]) -> None:
    """Add a virtio device; `interrupt` is what the interrupt controller's binding wants."""
    node = parent.add(f"virtio_mmio@{base:x}")
    node["compatible"] = "virtio,mmio"
    node["reg"] = cells64(base, size)
    node["interrupts"] = interrupt
    node["dma-coherent"] = True


class PcieHost:
    """A generic ECAM host bridge: (base, size) of configuration space, and of the windows it hands down.

    `irqs` are four interrupt numbers, in the machine's terms, that INTA to INTD are swizzled over.
    """

    __slots__ = ("ecam", "io", "irqs", "mmio32", "mmio64")

    def __init__(
        self,
        ecam: tuple[int, int],
        mmio32: tuple[int, int],
        irqs: Sequence[int],
        io: tuple[int, int] | None = None,
        mmio64: tuple[int, int] | None = None,
    ) -> None:
        self.ecam = ecam
        self.mmio32 = mmio32
        self.mmio64 = mmio64
        self.io = io
        self.irqs = tuple(irqs)
        if len(self.irqs) != PINS or ecam[1] >> 20 not in range(1, 257):
            raise ValueError(f"{len(self.irqs)} interrupts, {ecam[1]:#x} bytes: give four, and 1 MiB for each bus")

    @classmethod
    def of_layout(cls, layout: Layout, irq: int) -> Self:
        """Return the bridge where a machine's layout has it, with four interrupts from `irq` on."""
        return cls(
            (layout.PCIE_ECAM, layout.PCIE_ECAM_SIZE),
            (layout.PCIE_MMIO, layout.PCIE_MMIO_SIZE),
            range(irq, irq + PINS),
            (layout.PCIE_IO, layout.PCIE_IO_SIZE),
            (layout.PCIE_MMIO64, layout.PCIE_MMIO64_SIZE),
        )

    def add_to(self, parent: Node, controller: Node, specifier: Callable[[int], list[int]]) -> Node:
        """Add the bridge. `controller` takes the interrupts; `specifier` says one in its binding's words."""
        base, size = self.ecam
        node = parent.add(f"pcie@{base:x}")
        node["compatible"] = "pci-host-ecam-generic"
        node["device_type"] = "pci"
        node["reg"] = cells64(base, size)
        node["bus-range"] = [0, (size >> 20) - 1]
        node["linux,pci-domain"] = 0
        node["#address-cells"] = 3
        node["#size-cells"] = 2
        node["#interrupt-cells"] = 1
        node["dma-coherent"] = True
        node["ranges"] = self._ranges()
        unit = [0] * int.from_bytes(controller.properties.get("#address-cells", bytes(4)), "big")
        node["interrupt-map"] = [
            cell
            for slot in range(PINS)
            for pin in range(1, PINS + 1)
            for cell in [
                slot << 11, 0, 0, pin, controller.phandle, *unit, *specifier(self.irqs[(slot + pin - 1) % PINS]),
            ]
        ]  # fmt: skip
        node["interrupt-map-mask"] = [(PINS - 1) << 11, 0, 0, 7]  # the swizzle repeats after four slots
        return node

    def _ranges(self) -> bytes:
        rows = b""
        if self.io is not None:
            rows += pack(">IQQQ", RANGE_IO, 0, *self.io)
        rows += pack(">IQQQ", RANGE_MEM32, self.mmio32[0], *self.mmio32)
        if self.mmio64 is not None:
            rows += pack(">IQQQ", RANGE_MEM64, self.mmio64[0], *self.mmio64)
        return rows
