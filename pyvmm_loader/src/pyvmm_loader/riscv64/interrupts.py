"""The interrupt controllers that a riscv64 machine can have, as its device tree describes them: PLIC, or AIA.

A PLIC is a device of the machine's; KVM has none. The advanced interrupt architecture is in KVM where the host's
processors have it: an APLIC, which takes the lines of devices, and for each hart an IMSIC, which takes messages.

Sources: the kernel's Documentation/devicetree/bindings/interrupt-controller: sifive,plic-1.0.0, riscv,aplic and
riscv,imsics.
"""

from __future__ import annotations

from pyvmm_loader.fdt.node import cells64
from pyvmm_loader.riscv64 import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    from pyvmm_loader.fdt.node import Node

S_EXTERNAL, M_EXTERNAL = 9, 11
NO_CONTEXT = 0xFFFFFFFF
EDGE_RISING, LEVEL_HIGH = 1, 4
MOST_SOURCES = 1023
IDS = range(63, 2048, 64)


class PlicLayout:
    """A PLIC: where it is, how many sources it has, and whether its contexts are one or two for each hart.

    With two, the first is machine mode's; it is nobody's where the machine has no machine mode.
    """

    __slots__ = ("base", "contexts", "size", "sources")

    def __init__(
        self,
        base: int = layout.PLIC,
        size: int = layout.PLIC_SIZE,
        *,
        sources: int = layout.SOURCES,
        contexts: int = 2,
    ) -> None:
        if not 1 <= sources <= MOST_SOURCES or contexts not in (1, 2):
            raise ValueError(f"a PLIC of {sources} sources, {contexts} contexts: there are 1 to {MOST_SOURCES}, 1 or 2")
        self.base = base
        self.size = size
        self.sources = sources
        self.contexts = contexts

    def add_to(self, soc: Node, harts: list[Node], *, machine_mode: bool = False) -> tuple[Node, Node | None]:
        """Add it; return what takes the devices' lines and what takes messages."""
        if machine_mode and self.contexts < 2:
            raise ValueError("a PLIC for machine mode has two contexts for each hart, not 1")
        first = M_EXTERNAL if machine_mode else NO_CONTEXT
        plic = soc.add(f"plic@{self.base:x}", reg=cells64(self.base, self.size))
        plic["compatible"] = ["sifive,plic-1.0.0", "riscv,plic0"]
        plic["#interrupt-cells"] = 1
        plic["#address-cells"] = 0
        plic["interrupt-controller"] = True
        plic["riscv,ndev"] = self.sources
        contexts = [(hart, mode) for hart in harts for mode in (first, S_EXTERNAL)[-self.contexts :]]
        plic["interrupts-extended"] = [cell for context in contexts for cell in context]
        return plic, None

    def specifier(self, irq: int, _trigger: int = LEVEL_HIGH) -> list[int]:
        """Return how the tree says a line; how its device drives it, the PLIC knows by itself."""
        return [irq]

    def extensions(self) -> tuple[str, ...]:
        """Return what the harts must have for it."""
        return ()


class AiaLayout:
    """An APLIC and IMSICs: where they are, how many lines the one takes, and the highest message of the others."""

    __slots__ = ("aplic", "aplic_size", "ids", "imsic", "sources")

    def __init__(
        self,
        aplic: int = layout.APLIC,
        aplic_size: int = layout.APLIC_SIZE,
        imsic: int = layout.IMSIC,
        *,
        sources: int = layout.SOURCES,
        ids: int = 255,
    ) -> None:
        if not 1 <= sources <= MOST_SOURCES or ids not in IDS:
            raise ValueError(
                f"an AIA of {sources} sources, {ids} messages: there are 1 to {MOST_SOURCES}, 63 to 2047 by 64s"
            )
        self.aplic = aplic
        self.aplic_size = aplic_size
        self.imsic = imsic
        self.sources = sources
        self.ids = ids

    def add_to(self, soc: Node, harts: list[Node], *, machine_mode: bool = False) -> tuple[Node, Node | None]:
        """Add them; return what takes the devices' lines and what takes messages."""
        if machine_mode:
            raise ValueError("the AIA here is the supervisor's: machine mode needs one of its own, or a PLIC")
        imsic = soc.add(f"interrupt-controller@{self.imsic:x}", compatible=["qemu,imsics", "riscv,imsics"])
        imsic["reg"] = cells64(self.imsic, layout.IMSIC_SIZE * len(harts))
        imsic["interrupt-controller"] = True
        imsic["#interrupt-cells"] = 0
        imsic["#address-cells"] = 0
        imsic["msi-controller"] = True
        imsic["#msi-cells"] = 0
        imsic["riscv,num-ids"] = self.ids
        imsic["interrupts-extended"] = [cell for hart in harts for cell in (hart, S_EXTERNAL)]
        aplic = soc.add(f"interrupt-controller@{self.aplic:x}", compatible=["qemu,aplic", "riscv,aplic"])
        aplic["reg"] = cells64(self.aplic, self.aplic_size)
        aplic["interrupt-controller"] = True
        aplic["#interrupt-cells"] = 2
        aplic["#address-cells"] = 0
        aplic["riscv,num-sources"] = self.sources
        aplic["msi-parent"] = imsic
        return aplic, imsic

    def specifier(self, irq: int, trigger: int = LEVEL_HIGH) -> list[int]:
        """Return how the tree says a line, and how its device drives it."""
        return [irq, trigger]

    def extensions(self) -> tuple[str, ...]:
        """Return what the harts must have for it: a kernel that is not told so has no driver for its IMSIC."""
        return ("ssaia",)


if TYPE_CHECKING:
    Interrupts: TypeAlias = "str | PlicLayout | AiaLayout"


def controllers(asked: Interrupts) -> PlicLayout | AiaLayout:
    """Return the layout of what is asked for: itself, or the usual one of a name."""
    if isinstance(asked, (PlicLayout, AiaLayout)):
        return asked
    if asked == "plic":
        return PlicLayout()
    if asked == "aia":
        return AiaLayout()
    raise ValueError(f"interrupts {asked!r}: there are plic and aia")
