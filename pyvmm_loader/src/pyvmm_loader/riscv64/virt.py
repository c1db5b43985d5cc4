"""The device tree of a riscv64 virtual machine: AIA or PLIC, CLINT, NS16550A, clock, virtio-mmio, PCIe.

Sources: the kernel's Documentation/devicetree/bindings: riscv/cpus, interrupt-controller/riscv,imsics and riscv,aplic
and sifive,plic-1.0.0, timer/sifive,clint, serial/8250, rtc/google,goldfish-rtc, virtio/mmio, pci/host-generic-pci.
"""

from __future__ import annotations

from pyvmm_loader.fdt.machine import Chosen, PcieHost, add_memory, add_virtio_mmio, new_tree
from pyvmm_loader.fdt.node import cells64
from pyvmm_loader.riscv64 import layout

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm_loader.fdt.node import Node
    from pyvmm_loader.fdt.tree import Fdt

TIMEBASE_HZ = 10_000_000
UART_CLOCK_HZ = 3_686_400
S_SOFT, M_SOFT, M_TIMER, S_EXTERNAL, M_EXTERNAL = 1, 3, 7, 9, 11
NO_CONTEXT = 0xFFFFFFFF
EDGE_RISING, LEVEL_HIGH = 1, 4
EXTENSIONS = ("i", "m", "a", "f", "d", "c", "zicntr", "zicsr", "zifencei", "zihpm")


def pcie(irq: int = layout.PCIE_IRQ) -> PcieHost:
    """Return the machine's PCIe host bridge in its usual place."""
    return PcieHost.of_layout(layout, irq)


def virt_tree(
    ranges: Sequence[tuple[int, int]],
    vcpus: int = 1,
    chosen: Chosen | None = None,
    *,
    interrupts: str = "plic",
    machine_mode: bool = False,
    virtio: int = 0,
    host: PcieHost | None = None,
    extensions: Sequence[str] = EXTENSIONS,
    mmu: str = "sv39",
) -> Fdt:
    """Return the tree. `ranges` are (start, size) pairs of RAM, `virtio` how many virtio-mmio slots there are.

    `interrupts` is plic, or aia (APLIC and IMSIC). With `machine_mode` there is a CLINT and the PLIC has contexts for
    machine mode, for firmware of one's own; without it the kernel's firmware is the hypervisor, as under KVM.
    `extensions` begins with the letter i; `mmu` is sv39, sv48 or sv57.
    """
    if interrupts not in ("plic", "aia"):
        raise ValueError(f"interrupts {interrupts!r}: there are plic and aia")
    if not 1 <= vcpus <= 512 or not 0 <= virtio <= layout.VIRTIO_SLOTS:
        raise ValueError(f"{vcpus} harts, {virtio} virtio slots: there may be 1 to 512, and {layout.VIRTIO_SLOTS}")
    tree = new_tree("riscv-virtio", "riscv-virtio,pyvmm")
    root = tree.root
    (chosen or Chosen()).add_to(root, f"/soc/serial@{layout.UART:x}")
    add_memory(root, ranges)
    harts = _harts(root, vcpus, extensions, mmu)
    soc = root.add("soc", compatible="simple-bus")
    soc["#address-cells"] = 2
    soc["#size-cells"] = 2
    soc["ranges"] = True
    msi: Node | None = None
    if interrupts == "aia":
        msi = _imsic(soc, harts)
        controller = _aplic(soc, msi)
    else:
        controller = _plic(soc, harts, machine_mode=machine_mode)

    def specifier(irq: int, trigger: int = LEVEL_HIGH) -> list[int]:
        return [irq] if msi is None else [irq, trigger]

    if machine_mode:
        _clint(soc, harts)
    soc["interrupt-parent"] = controller
    serial = soc.add(f"serial@{layout.UART:x}", compatible="ns16550a", reg=cells64(layout.UART, 0x100))
    serial["interrupts"] = specifier(layout.UART_IRQ)
    serial["clock-frequency"] = UART_CLOCK_HZ
    clock = soc.add(f"rtc@{layout.RTC:x}", compatible="google,goldfish-rtc", reg=cells64(layout.RTC, 0x1000))
    clock["interrupts"] = specifier(layout.RTC_IRQ)
    for slot in range(virtio):
        base = layout.VIRTIO + slot * layout.VIRTIO_SIZE
        irq = layout.VIRTIO_IRQ + slot
        add_virtio_mmio(soc, base, layout.VIRTIO_SIZE, specifier(irq, EDGE_RISING))
    if host is not None:
        bridge = host.add_to(soc, controller, specifier)
        if msi is not None:
            bridge["msi-parent"] = msi
    return tree


def _harts(root: Node, vcpus: int, extensions: Sequence[str], mmu: str) -> list[Node]:
    """Add the processors; return their interrupt controllers."""
    cpus = root.add("cpus")
    cpus["#address-cells"] = 1
    cpus["#size-cells"] = 0
    cpus["timebase-frequency"] = TIMEBASE_HZ
    letters = "".join([name for name in extensions if len(name) == 1])
    isa = "_".join([f"rv64{letters}", *[name for name in extensions if len(name) > 1]])
    found = []
    for number in range(vcpus):
        hart = cpus.add(f"cpu@{number:x}", device_type="cpu", compatible="riscv", reg=number, status="okay")
        hart["riscv,isa"] = isa
        hart["riscv,isa-base"] = "rv64i"
        hart["riscv,isa-extensions"] = list(extensions)
        hart["mmu-type"] = f"riscv,{mmu}"
        controller = hart.add("interrupt-controller", compatible="riscv,cpu-intc")
        controller["#interrupt-cells"] = 1
        controller["#address-cells"] = 0
        controller["interrupt-controller"] = True
        found.append(controller)
    return found


def _plic(soc: Node, harts: list[Node], *, machine_mode: bool) -> Node:
    plic = soc.add(f"plic@{layout.PLIC:x}", reg=cells64(layout.PLIC, layout.PLIC_SIZE))
    plic["compatible"] = ["sifive,plic-1.0.0", "riscv,plic0"]
    plic["#interrupt-cells"] = 1
    plic["#address-cells"] = 0
    plic["interrupt-controller"] = True
    plic["riscv,ndev"] = layout.SOURCES
    first = M_EXTERNAL if machine_mode else NO_CONTEXT
    plic["interrupts-extended"] = [cell for hart in harts for cell in (hart, first, hart, S_EXTERNAL)]
    return plic


def _clint(soc: Node, harts: list[Node]) -> None:
    clint = soc.add(f"clint@{layout.CLINT:x}")
    clint["compatible"] = ["sifive,clint0", "riscv,clint0"]
    clint["reg"] = cells64(layout.CLINT, layout.CLINT_SIZE)
    clint["interrupts-extended"] = [cell for hart in harts for cell in (hart, M_SOFT, hart, M_TIMER)]


def _imsic(soc: Node, harts: list[Node]) -> Node:
    imsic = soc.add(f"interrupt-controller@{layout.IMSIC:x}", compatible=["qemu,imsics", "riscv,imsics"])
    imsic["reg"] = cells64(layout.IMSIC, layout.IMSIC_SIZE * len(harts))
    imsic["interrupt-controller"] = True
    imsic["#interrupt-cells"] = 0
    imsic["#address-cells"] = 0
    imsic["msi-controller"] = True
    imsic["#msi-cells"] = 0
    imsic["riscv,num-ids"] = 255
    imsic["interrupts-extended"] = [cell for hart in harts for cell in (hart, S_EXTERNAL)]
    return imsic


def _aplic(soc: Node, msi: Node) -> Node:
    aplic = soc.add(f"interrupt-controller@{layout.APLIC:x}", compatible=["qemu,aplic", "riscv,aplic"])
    aplic["reg"] = cells64(layout.APLIC, layout.APLIC_SIZE)
    aplic["interrupt-controller"] = True
    aplic["#interrupt-cells"] = 2
    aplic["#address-cells"] = 0
    aplic["riscv,num-sources"] = layout.SOURCES
    aplic["msi-parent"] = msi
    return aplic
