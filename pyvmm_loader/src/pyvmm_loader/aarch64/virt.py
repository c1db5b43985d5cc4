"""The device tree of an arm64 virtual machine: GICv3, PSCI, timer, PL011, PL031, virtio-mmio, PCIe.

Sources: the kernel's Documentation/devicetree/bindings: arm/cpus, arm/psci, timer/arm,arch_timer,
interrupt-controller/arm,gic-v3, serial/pl011, rtc/arm,pl031, virtio/mmio, pci/host-generic-pci.
"""

from __future__ import annotations

from pyvmm_loader.aarch64 import layout
from pyvmm_loader.fdt.machine import Chosen, PcieHost, add_memory, add_virtio_mmio, new_tree
from pyvmm_loader.fdt.node import cells64

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from pyvmm_loader.fdt.node import Node
    from pyvmm_loader.fdt.tree import Fdt

SPI, PPI = 0, 1
EDGE_RISING, LEVEL_HIGH = 1, 4
TIMER_PPIS = (13, 14, 11, 10)
"""Secure, non-secure, virtual, hypervisor."""
APB_CLOCK_HZ = 24_000_000


def mpidr(number: int) -> int:
    """Return the affinity of a processor: 16 to a cluster, as GICv3's list registers want it."""
    return (number & 0xF) | (number >> 4) << 8


def pcie(irq: int = layout.PCIE_SPI) -> PcieHost:
    """Return the machine's PCIe host bridge in its usual place."""
    return PcieHost.of_layout(layout, irq)


def virt_tree(
    ranges: Sequence[tuple[int, int]],
    vcpus: int = 1,
    chosen: Chosen | None = None,
    *,
    virtio: int = 0,
    host: PcieHost | None = None,
    its: bool = True,
) -> Fdt:
    """Return the tree. `ranges` are (start, size) pairs of RAM, `virtio` how many virtio-mmio slots there are.

    >>> virt_tree([(0x40000000, 256 << 20)], 2, virtio=1)
    <Fdt 14 nodes>
    """
    if not 1 <= vcpus <= layout.MAX_CPUS:
        raise ValueError(f"{vcpus} processors: the redistributors' place has room for 1 to {layout.MAX_CPUS}")
    if not 0 <= virtio <= layout.VIRTIO_SLOTS:
        raise ValueError(f"{virtio} virtio slots: there may be {layout.VIRTIO_SLOTS}")
    tree = new_tree("linux,dummy-virt", "pyvmm,virt")
    root = tree.root
    (chosen or Chosen()).add_to(root, f"/serial@{layout.UART:x}")
    add_memory(root, ranges)
    _processors(root, vcpus)
    gic, msi = _gic(root, vcpus, its=its)
    root["interrupt-parent"] = gic
    _timer(root)
    clock = root.add("apb-pclk", compatible="fixed-clock")
    clock["#clock-cells"] = 0
    clock["clock-frequency"] = APB_CLOCK_HZ
    clock["clock-output-names"] = "clk24mhz"
    _primecell(root, "serial", "arm,pl011", layout.UART, layout.UART_SPI, [clock, clock], ["uartclk", "apb_pclk"])
    _primecell(root, "rtc", "arm,pl031", layout.RTC, layout.RTC_SPI, [clock], ["apb_pclk"])
    for slot in range(virtio):
        base = layout.VIRTIO + slot * layout.VIRTIO_SIZE
        add_virtio_mmio(root, base, layout.VIRTIO_SIZE, [SPI, layout.VIRTIO_SPI + slot, EDGE_RISING])
    if host is not None:
        bridge = host.add_to(root, gic, lambda irq: [SPI, irq, LEVEL_HIGH])
        if msi is not None:
            bridge["msi-map"] = [0, msi, 0, 0x10000]
    return tree


def _processors(root: Node, vcpus: int) -> None:
    cpus = root.add("cpus")
    cpus["#address-cells"] = 1
    cpus["#size-cells"] = 0
    for number in range(vcpus):
        affinity = mpidr(number)
        node = cpus.add(f"cpu@{affinity:x}", device_type="cpu", compatible="arm,armv8", reg=affinity)
        if vcpus > 1:
            node["enable-method"] = "psci"
    psci = root.add("psci", method="hvc")
    psci["compatible"] = ["arm,psci-1.0", "arm,psci-0.2"]


def _gic(root: Node, vcpus: int, *, its: bool) -> tuple[Node, Node | None]:
    gic = root.add(f"interrupt-controller@{layout.GIC_DIST:x}", compatible="arm,gic-v3")
    gic["#interrupt-cells"] = 3
    gic["interrupt-controller"] = True
    gic["#address-cells"] = 2
    gic["#size-cells"] = 2
    gic["ranges"] = True
    redistributors = layout.GIC_REDIST_SIZE * vcpus
    gic["reg"] = cells64(layout.GIC_DIST, layout.GIC_DIST_SIZE, layout.GIC_REDIST, redistributors)
    gic["interrupts"] = [PPI, 9, LEVEL_HIGH]
    if not its:
        return gic, None
    msi = gic.add(f"msi-controller@{layout.GIC_ITS:x}", compatible="arm,gic-v3-its")
    msi["msi-controller"] = True
    msi["#msi-cells"] = 1
    msi["reg"] = cells64(layout.GIC_ITS, layout.GIC_ITS_SIZE)
    return gic, msi


def _timer(root: Node) -> None:
    timer = root.add("timer", compatible="arm,armv8-timer")
    timer["interrupts"] = [cell for ppi in TIMER_PPIS for cell in (PPI, ppi, LEVEL_HIGH)]
    timer["always-on"] = True


def _primecell(
    root: Node, name: str, compatible: str, base: int, spi: int, clocks: list[Node], clock_names: list[str]
) -> None:
    node = root.add(f"{name}@{base:x}")
    node["compatible"] = [compatible, "arm,primecell"]
    node["reg"] = cells64(base, 0x1000)
    node["interrupts"] = [SPI, spi, LEVEL_HIGH]
    node["clocks"] = clocks
    node["clock-names"] = clock_names
