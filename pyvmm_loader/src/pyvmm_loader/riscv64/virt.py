"""The device tree of a riscv64 virtual machine: AIA or PLIC, CLINT, NS16550A, clock, virtio-mmio, PCIe.

Sources: the kernel's Documentation/devicetree/bindings: riscv/cpus, timer/sifive,clint, serial/8250,
rtc/google,goldfish-rtc, virtio/mmio, pci/host-generic-pci; `interrupts` names those of interrupt controllers.
"""

from __future__ import annotations

from pyvmm_loader.fdt.machine import Chosen, PcieHost, add_memory, add_virtio_mmio, new_tree
from pyvmm_loader.fdt.node import cells64
from pyvmm_loader.riscv64 import layout
from pyvmm_loader.riscv64.interrupts import EDGE_RISING, controllers

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm_loader.fdt.node import Node
    from pyvmm_loader.fdt.tree import Fdt
    from pyvmm_loader.riscv64.interrupts import Interrupts

TIMEBASE_HZ = 10_000_000
UART_CLOCK_HZ = 3_686_400
M_SOFT, M_TIMER = 3, 7
EXTENSIONS = ("i", "m", "a", "f", "d", "c", "zicntr", "zicsr", "zifencei", "zihpm")


def pcie(irq: int = layout.PCIE_IRQ) -> PcieHost:
    """Return the machine's PCIe host bridge in its usual place."""
    return PcieHost.of_layout(layout, irq)


def virt_tree(
    ranges: Sequence[tuple[int, int]],
    vcpus: int = 1,
    chosen: Chosen | None = None,
    *,
    interrupts: Interrupts = "plic",
    machine_mode: bool = False,
    clock: bool = True,
    virtio: int = 0,
    host: PcieHost | None = None,
    extensions: Sequence[str] = EXTENSIONS,
    mmu: str = "sv39",
    timebase: int = TIMEBASE_HZ,
) -> Fdt:
    """Return the tree. `ranges` are (start, size) pairs of RAM, `virtio` how many virtio-mmio slots there are.

    `interrupts` is plic, or aia (APLIC and IMSIC), in their usual places, or a layout of theirs. With `machine_mode`
    there is a CLINT and the PLIC has contexts for machine mode, for firmware of one's own; without it the kernel's
    firmware is the hypervisor, as under KVM. `clock` says whether there is one that tells the time. `extensions`
    begins with the letter i, and what the interrupt controller needs is added; `mmu` is sv39, sv48 or sv57; `timebase`
    is how often a second the harts' timers count.
    """
    if not 1 <= vcpus <= 512 or not 0 <= virtio <= layout.VIRTIO_SLOTS:
        raise ValueError(f"{vcpus} harts, {virtio} virtio slots: there may be 1 to 512, and {layout.VIRTIO_SLOTS}")
    machine = controllers(interrupts)
    tree = new_tree("riscv-virtio", "riscv-virtio,pyvmm")
    root = tree.root
    (chosen or Chosen()).add_to(root, f"/soc/serial@{layout.UART:x}")
    add_memory(root, ranges)
    needed = [name for name in machine.extensions() if name not in extensions]
    harts = _harts(root, vcpus, [*extensions, *needed], mmu, timebase)
    soc = root.add("soc", compatible="simple-bus")
    soc["#address-cells"] = 2
    soc["#size-cells"] = 2
    soc["ranges"] = True
    controller, msi = machine.add_to(soc, harts, machine_mode=machine_mode)
    if machine_mode:
        _clint(soc, harts)
    soc["interrupt-parent"] = controller
    serial = soc.add(f"serial@{layout.UART:x}", compatible="ns16550a", reg=cells64(layout.UART, 0x100))
    serial["interrupts"] = machine.specifier(layout.UART_IRQ)
    serial["clock-frequency"] = UART_CLOCK_HZ
    if clock:
        rtc = soc.add(f"rtc@{layout.RTC:x}", compatible="google,goldfish-rtc", reg=cells64(layout.RTC, 0x1000))
        rtc["interrupts"] = machine.specifier(layout.RTC_IRQ)
    for slot in range(virtio):
        base = layout.VIRTIO + slot * layout.VIRTIO_SIZE
        irq = layout.VIRTIO_IRQ + slot
        add_virtio_mmio(soc, base, layout.VIRTIO_SIZE, machine.specifier(irq, EDGE_RISING))
    if host is not None:
        bridge = host.add_to(soc, controller, machine.specifier)
        if msi is not None:
            bridge["msi-parent"] = msi
    return tree


def _harts(root: Node, vcpus: int, extensions: Sequence[str], mmu: str, timebase: int) -> list[Node]:
    """Add the processors; return their interrupt controllers."""
    cpus = root.add("cpus")
    cpus["#address-cells"] = 1
    cpus["#size-cells"] = 0
    cpus["timebase-frequency"] = timebase
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


def _clint(soc: Node, harts: list[Node]) -> None:
    clint = soc.add(f"clint@{layout.CLINT:x}")
    clint["compatible"] = ["sifive,clint0", "riscv,clint0"]
    clint["reg"] = cells64(layout.CLINT, layout.CLINT_SIZE)
    clint["interrupts-extended"] = [cell for hart in harts for cell in (hart, M_SOFT, hart, M_TIMER)]
