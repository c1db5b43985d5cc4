"""Whatever has a saved state: every class of the packages, found in the code, and how one of each is made.

A new class with a state fails `test_states.test_every_class_with_a_state_is_attacked` until it is made here.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
from random import Random
from typing import TYPE_CHECKING, Any

from tests.device import test_conformance as device_cases
from tests.virtio.echo import Echo

from pyvmm_device import (
    Composite,
    EventFdGroup,
    EventLoop,
    IoManager,
    LegacyGroup,
    ManualClock,
    MessageGroup,
    PciBridge,
    PcieRootPort,
    PciFunction,
    PciRoot,
    Ram,
)
from pyvmm_device.errors import DeviceStateError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyvmm_virtio.device import VirtioDevice

PACKAGES = ("pyvmm_device", "pyvmm_virtio", "pyvmm_kvm", "pyvmm_memory")
METHODS = ("restore", "restore_device", "from_state", "check_state", "restore_lazily")
ABSTRACT = {
    "pyvmm_device.arm.amba.AmbaDevice",
    "pyvmm_device.interrupt_group.InterruptGroup",
    "pyvmm_device.pc.port_device.PortDevice",
    "pyvmm_device.register_device.RegisterDevice",
    "pyvmm_device.state.Stateful",
    "pyvmm_virtio.device.VirtioDevice",
    "pyvmm_virtio.queue.base.BaseQueue",
}
"""What has no state but a subclass's."""
INSIDE = {
    "pyvmm_virtio.transport.base.Control": "pyvmm_virtio.transport.mmio.VirtioMmio",
    "pyvmm_virtio.transport.pci._State": "pyvmm_virtio.transport.pci.VirtioPci",
    "pyvmm_virtio.devices.block.under_way.UnderWay": "pyvmm_virtio.devices.block.device.Block",
    "pyvmm_virtio.devices.throttle.Throttle": "pyvmm_virtio.devices.block.device.Block",
}
"""What is a part of something else, whose state has its own in it."""


def modules() -> Iterator[str]:
    """Yield the name of every module of the packages that have states."""
    for package in PACKAGES:
        for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            if not found.name.endswith("__main__"):
                yield found.name


def classes() -> Iterator[str]:
    """Yield the name of every class with a state."""
    for name in modules():
        for found in vars(importlib.import_module(name)).values():
            if isinstance(found, type) and found.__module__ == name and any(hasattr(found, each) for each in METHODS):
                yield f"{name}.{found.__qualname__}"


class Subject:
    """Something with a state: an object, and what to do to see that it still works.

    Args:
        target: what has `state` and `restore`.
        use: called with a source of chance after each state that was accepted; nothing may come out of it.
    """

    def __init__(self, target: Any, use: Callable[[Random], object] = lambda _: None) -> None:  # noqa: ANN401 - anything
        self.target = target
        self.use = use
        self.resets: list[object] = []

    def state(self) -> Any:  # noqa: ANN401 - JSON
        return json.loads(json.dumps(self.target.state()))

    def restore(self, state: Any) -> None:  # noqa: ANN401 - anything
        self.target.restore(state)

    def close(self) -> None:
        """Let go of what it has."""


class FromState(Subject):
    """A queue, which is made anew from its state."""

    def restore(self, state: Any) -> None:  # noqa: ANN401 - anything
        self.target = type(self.target).from_state(state)


def device_case(name: str, attribute: str | None = None) -> Callable[[], Subject]:
    """A device as the conformance suite makes it, used as that does."""

    def make() -> Subject:
        case, clock = device_cases.DEVICES[name], ManualClock(1 << 40)
        device: Any = case.make(device_cases.Output(), clock)

        def use(chance: Random) -> None:
            for _ in range(12):
                step = (
                    chance.randrange(4),
                    chance.randrange(1 << 20),
                    chance.choice((1, 2, 4, 8)),
                    chance.getrandbits(64),
                )
                device_cases.do(case, device, clock, step)

        subject = Subject(device if attribute is None else getattr(device, attribute), use)
        # a device may have been used when it is saved
        use(Random(name))
        return subject

    return make


def plain(make: Callable[[], Any]) -> Callable[[], Subject]:
    return lambda: Subject(make())


class NoRouter:
    """A hypervisor that takes every route."""

    def attach(self, fd: int, config: object) -> None:
        pass

    def detach(self, fd: int) -> None:
        pass


def whole_function(kind: Callable[[], PciFunction]) -> PciFunction:
    """A function on a bus, with BARs, messages and interrupts."""
    io = IoManager()
    function = kind()
    PciRoot(io, [device_cases.Output()] * 4).add(function, 1)
    return function


def ordinary() -> PciFunction:
    function = PciFunction(1, 2, 3, interrupt_pin=1)
    function.add_bar(0, 0x1000, Ram(0x1000))
    function.add_bar(1, 0x1000, Composite(0x1000, {0: Ram(16), 0x20: Ram(4)}))
    function.add_msi(MessageGroup(4, lambda _: None))
    function.add_msix(MessageGroup(3, lambda _: None), 2)
    return function


def with_child() -> PciRoot:
    root = device_cases.WholeRoot(device_cases.Output(), ManualClock())
    root.root.bus.keep = root  # type: ignore[attr-defined]  # or its ranges would be gone
    return root.root


class VirtioSubject(Subject):
    """A virtio device behind a transport, driven by a driver, with requests on their way; counts resets."""

    def __init__(self, make: Callable[[EventLoop], VirtioDevice], transport: str, ring: str, *, bare: bool) -> None:
        from pyvmm_virtio.driver import drive

        self.loop = EventLoop()
        self.device = make(self.loop)
        self.driver: Any = drive(self.device, transport, ring, pump=lambda: self.loop.run_once(0.001))
        super().__init__(self.device if bare else self.driver.transport, self._work)
        self.bare = bare
        reset = self.device.reset

        def counted() -> None:
            self.resets.append(None)
            reset()

        self.device.reset = counted  # type: ignore[method-assign]
        self.device.pause()

    def restore(self, state: Any) -> None:  # noqa: ANN401 - anything
        if self.bare:
            self.device.restore(state, self.driver.transport.control.interrupt)
        else:
            self.driver.transport.restore(state)

    def _work(self, _: Random) -> None:
        bugs = self.device.bugs
        self.device.resume()
        for index in range(len(self.device.queues)):
            self.device.kick(index)
        self.loop.run_once(0)
        self.device.pause()
        assert self.device.bugs == bugs, f"{self.device.last_error!r} came out of it"

    def close(self) -> None:
        self.driver.close()
        for each in (self.device, getattr(self.device, "other_end", None)):
            getattr(each, "close", int)()
        self.loop.close()


def virtio(make: Callable[[EventLoop], VirtioDevice], transport: str, ring: str, *, bare: bool = False) -> Any:  # noqa: ANN401 - anything
    return lambda: VirtioSubject(make, transport, ring, bare=bare)


def with_requests(transport: str, ring: str, *, bare: bool) -> Callable[[], Subject]:
    """A disk that was saved with a read under way, of 512 bytes at the end of memory."""

    def make() -> Subject:
        subject = VirtioSubject(block, transport, ring, bare=bare)
        end = subject.driver.memory.last_addr().raw_value() & ~0xFFF
        descriptors = [[end, 16, 1, 1], [end + 16, 512, 3, 2], [end + 528, 1, 2, 0]]
        state = subject.state()
        virtio = state if bare else state.get("virtio") or state["parts"]["virtio"]["virtio"]
        virtio["own"]["requests"] = [{"queue": 0, "head": 0, "descriptors": descriptors}]
        virtio["queues"][0]["in_flight"] = [[0, 3]]
        subject.restore(state)
        assert subject.state() == state
        return subject

    return make


def block(loop: EventLoop) -> VirtioDevice:
    from pyvmm_virtio.backends.memory import MemoryDisk
    from pyvmm_virtio.devices import Block
    from pyvmm_virtio.rate_limiter import RateLimiter, TokenBucket

    limiter = RateLimiter(TokenBucket(1 << 20, 100, 5), TokenBucket(1000, 100))
    return Block(MemoryDisk(1 << 16), rate_limiter=limiter, loop=loop, queues=2, queue_size=16)


def net(loop: EventLoop) -> VirtioDevice:
    from pyvmm_virtio.samples import make

    return make("net")


def console(loop: EventLoop) -> VirtioDevice:
    from pyvmm_virtio.backends.port import CallablePort
    from pyvmm_virtio.devices import Console, Port

    return Console(CallablePort(), Port(CallablePort(), "agent"), size=(80, 25), queue_size=16, loop=loop, max_ports=3)


def rng(loop: EventLoop) -> VirtioDevice:
    from pyvmm_virtio.devices import Rng
    from pyvmm_virtio.rate_limiter import RateLimiter, TokenBucket

    return Rng(rate_limiter=RateLimiter(TokenBucket(1 << 20, 100)), loop=loop, queue_size=16)


def queue(ring: str) -> Callable[[], Subject]:
    def make() -> Subject:
        driven = VirtioSubject(block, "mmio", ring, bare=True)
        subject = FromState(driven.device.queues[0])
        subject.close = driven.close  # type: ignore[method-assign]
        return subject

    return make


def port() -> Subject:
    device: Any = console(EventLoop())
    target = device.ports[1]

    class Fields:
        """A port takes what its `check_state` returned."""

        state = target.state

        def restore(self, state: Any) -> None:  # noqa: ANN401 - anything
            target.restore(target.check_state(state))

    return Subject(Fields())


def limiter() -> Any:  # noqa: ANN401 - a rate limiter
    from pyvmm_virtio.rate_limiter import RateLimiter, TokenBucket

    return RateLimiter(TokenBucket(1 << 20, 100, 5, clock=lambda: 0), TokenBucket(1000, 100, clock=lambda: 0))


def bucket() -> Any:  # noqa: ANN401 - a bucket
    return limiter().bandwidth


def receive_filter() -> Any:  # noqa: ANN401 - a filter
    from pyvmm_virtio.devices.net.filter import ReceiveFilter

    made = ReceiveFilter(b"\x52\0\0\0\0\1")
    made.set_tables([b"\x52\0\0\0\0\2"], [b"\1\0\x5e\0\0\1", b"\1\0\x5e\0\0\2"])
    made.vlans = {1, 7}
    return made


MAKERS: dict[str, list[Callable[[], Subject]]] = {
    "pyvmm_device.acpi.control.AcpiSleep": [device_case("acpi sleep")],
    "pyvmm_device.acpi.control.AcpiMode": [device_case("acpi mode")],
    "pyvmm_device.acpi.control.ResetPort": [device_case("reset port")],
    "pyvmm_device.acpi.pm.AcpiPm": [device_case("acpi fixed hardware"), device_case("acpi, timer of 24 bits")],
    "pyvmm_device.acpi.pm.AcpiGpe": [device_case("acpi general events")],
    "pyvmm_device.arm.pl011.Pl011": [device_case("pl011")],
    "pyvmm_device.arm.pl031.Pl031": [device_case("pl031")],
    "pyvmm_device.composite.Composite": [device_case("composite")],
    "pyvmm_device.interrupt_group.MessageGroup": [plain(lambda: MessageGroup(5, lambda _: None))],
    "pyvmm_device.interrupt_group.EventFdGroup": [plain(lambda: EventFdGroup(3, NoRouter()))],
    "pyvmm_device.interrupt_group.LegacyGroup": [plain(lambda: LegacyGroup(1, device_cases.Output()))],
    "pyvmm_device.pc.cmos.Cmos": [device_case("cmos")],
    "pyvmm_device.pc.i8042.I8042": [device_case("i8042"), device_case("i8042 alone")],
    "pyvmm_device.pc.ioapic.Ioapic": [device_case("ioapic")],
    "pyvmm_device.pc.pic.PicChip": [lambda: Subject(_pic_chip())],
    "pyvmm_device.pc.pic.Pic": [device_case("8259s")],
    "pyvmm_device.pc.pit.Pit": [device_case("8254")],
    "pyvmm_device.pc.pit_counter.PitCounter": [lambda: Subject(_pit_counter())],
    "pyvmm_device.pc.port92.Port92": [device_case("port 0x92")],
    "pyvmm_device.pc.ps2_keyboard.Ps2Keyboard": [device_case("i8042", "keyboard")],
    "pyvmm_device.pc.serial.Serial": [device_case("serial")],
    "pyvmm_device.pci.bridge.PciBridge": [plain(lambda: whole_function(lambda: PciBridge(IoManager())))],
    "pyvmm_device.pci.bridge.SecondaryBus": [plain(lambda: _secondary())],
    "pyvmm_device.pci.bus.PciBus": [plain(lambda: with_child().bus)],
    "pyvmm_device.pci.function.PciFunction": [plain(lambda: whole_function(ordinary)), device_case("pvpanic by pci")],
    "pyvmm_device.pci.hotplug.PciHotplug": [device_case("pci hotplug")],
    "pyvmm_device.pci.msi.MsiCapability": [plain(lambda: whole_function(ordinary).msi)],
    "pyvmm_device.pci.msix.MsixCapability": [plain(lambda: whole_function(ordinary).msix)],
    "pyvmm_device.pci.root.ConfigPorts": [plain(lambda: with_child().ports)],
    "pyvmm_device.pci.root.PciRoot": [device_case("pci root")],
    "pyvmm_device.pci.root_port.PcieRootPort": [plain(lambda: whole_function(lambda: PcieRootPort(IoManager(), 1)))],
    "pyvmm_device.qemu.debug_ports.DebugPort": [device_case("debug port")],
    "pyvmm_device.qemu.debug_ports.PostPort": [device_case("post port")],
    "pyvmm_device.qemu.debug_ports.DebugExit": [device_case("debug exit")],
    "pyvmm_device.qemu.fw_cfg.FwCfg": [device_case("fw_cfg")],
    "pyvmm_device.qemu.pvpanic.Pvpanic": [device_case("pvpanic")],
    "pyvmm_device.ram.Ram": [device_case("ram")],
    "pyvmm_device.riscv.plic.Plic": [device_case("plic")],
    "pyvmm_virtio.devices.block.device.Block": [
        virtio(block, "mmio", "split", bare=True),
        with_requests("mmio", "packed", bare=True),
        with_requests("pci", "split", bare=False),
    ],
    "pyvmm_virtio.devices.console.device.Console": [virtio(console, "mmio", "packed", bare=True)],
    "pyvmm_virtio.devices.console.port.Port": [port],
    "pyvmm_virtio.devices.net.device.Net": [virtio(net, "mmio", "split", bare=True)],
    "pyvmm_virtio.devices.net.filter.ReceiveFilter": [plain(receive_filter)],
    "pyvmm_virtio.devices.rng.Rng": [virtio(rng, "mmio", "packed", bare=True)],
    "pyvmm_virtio.queue.packed.PackedQueue": [queue("packed")],
    "pyvmm_virtio.queue.split.SplitQueue": [queue("split")],
    "pyvmm_virtio.rate_limiter.TokenBucket": [plain(bucket)],
    "pyvmm_virtio.rate_limiter.RateLimiter": [plain(limiter)],
    "pyvmm_virtio.transport.mmio.VirtioMmio": [virtio(each, "mmio", "split") for each in (block, net, console, rng)],
    "pyvmm_virtio.transport.pci.VirtioPci": [virtio(each, "pci", "packed") for each in (block, net, console, rng)]
    + [virtio(lambda _: Echo(), "pci", "split")],
}


def _pic_chip() -> Any:  # noqa: ANN401 - a chip
    from pyvmm_device import Pic

    return Pic(lambda _: None)._first


def _pit_counter() -> Any:  # noqa: ANN401 - a counter
    from pyvmm_device.pc.pit_counter import PitCounter

    return PitCounter()


def _secondary() -> Any:  # noqa: ANN401 - a bus
    function: Any = whole_function(lambda: PciBridge(IoManager()))
    function.secondary.add(PciFunction(4, 5, 6, interrupt_pin=2), 3)
    return function.secondary


SUBJECTS = [
    (f"{name.rsplit('.', 1)[-1]}{number or ''}", name, make)
    for name, makers in MAKERS.items()
    for number, make in enumerate(makers)
]
REFUSAL = DeviceStateError
