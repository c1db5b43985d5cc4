"""The binding of pyvmm_device's interrupts to KVM: what arrives in the local APIC of a processor that does not run."""

import mmap
import os
import time
from collections.abc import Iterator

import pytest

from kvm_interrupts import KvmInterrupts
from pyvmm_device import (
    BusRange,
    EventFdGroup,
    EventFdLevelInterrupt,
    EventLoop,
    IoManager,
    MessageGroup,
    MsiIrqConfig,
    PciFunction,
    PciRoot,
)
from pyvmm_kvm import IoIn, IoOut, Kvm, RunControl, VcpuExit, VcpuFd, VmFd, setup_real_mode

pytestmark = pytest.mark.kvm

APIC_SVR, APIC_IRR = 0xF0, 0x200


class Controllers:
    """A VM with one processor whose local APIC is on, and interrupts bound to it."""

    def __init__(self, vm: VmFd, vcpu: VcpuFd, loop: EventLoop) -> None:
        self.vm, self.vcpu, self.loop = vm, vcpu, loop
        lapic = vcpu.get_lapic()
        lapic.regs[APIC_SVR : APIC_SVR + 4] = (0x1FF).to_bytes(4, "little")
        vcpu.set_lapic(lapic)
        self.interrupts = KvmInterrupts(vm, loop)

    def arrived(self) -> set[int]:
        """The vectors that wait for the processor."""
        regs = bytes(self.vcpu.get_lapic().regs)
        return {v for v in range(256) if regs[APIC_IRR + v // 32 * 16 + v % 32 // 8] >> v % 8 & 1}


@pytest.fixture
def controllers() -> Iterator[Controllers]:
    with Kvm() as kvm, kvm.create_vm() as vm, EventLoop() as loop:
        vm.create_irq_chip()
        with vm.create_vcpu(0) as vcpu:
            made = Controllers(vm, vcpu, loop)
            yield made
            made.interrupts.close()


def message(vector: int) -> MsiIrqConfig:
    return MsiIrqConfig(0, 0xFEE00000, vector)


def test_an_eventfd_becomes_its_message(controllers: Controllers) -> None:
    group = controllers.interrupts.group(2)
    fd = group.notifier(1)
    assert fd is not None
    group.enable()
    group.update(0, message(0x30))
    group.update(1, message(0x41))
    os.eventfd_write(fd, 1)
    assert controllers.arrived() == {0x41}
    group.update(1, message(0x42))  # as when the guest moves an interrupt to another processor
    group.trigger(1)
    assert controllers.arrived() == {0x41, 0x42}


def test_what_came_while_masked_is_delivered_once(controllers: Controllers) -> None:
    group = controllers.interrupts.group(1)
    group.enable()
    group.update(0, message(0x51))
    group.mask(0)
    group.trigger(0)
    group.trigger(0)
    assert group.is_pending(0)
    assert not controllers.arrived()
    group.unmask(0)
    assert controllers.arrived() == {0x51}
    assert not group.is_pending(0)


def test_a_message_is_sent_at_once(controllers: Controllers) -> None:
    group = MessageGroup(1, controllers.interrupts.send)
    group.enable()
    group.update(0, message(0x61))
    group.trigger(0)
    assert controllers.arrived() == {0x61}


def test_lines_reach_the_ioapic(controllers: Controllers) -> None:
    chip = controllers.vm.get_irqchip(2)
    state = chip.ioapic
    state.redirtbl[4], state.redirtbl[10] = 0x34, 0x803A  # edge and level, not masked
    chip.ioapic = state
    controllers.vm.set_irqchip(chip)
    edge, level = controllers.interrupts.edge(4), controllers.interrupts.level(10)
    edge.trigger()
    level.assert_()
    deadline = time.monotonic() + 10
    while controllers.arrived() != {0x34, 0x3A}:  # KVM moves lines in a thread of its own
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert controllers.vm.get_irqchip(2).ioapic.irr == 1 << 10  # up until the guest ends the interrupt


def test_a_pci_function_with_msix_through_kvm(controllers: Controllers) -> None:
    io = IoManager()
    function = PciFunction(0x1AF4, 0x1110, 0x050000)
    msix = function.add_msix(controllers.interrupts.group(3), bar=1)
    PciRoot(io).add(function, 1)
    function.config_write(0x14, memoryview((0xD0000000).to_bytes(4, "little")))
    function.config_write(4, memoryview(b"\x06\x00"))
    function.config_write(msix.offset + 2, memoryview(b"\x00\x80"))
    for part, value in ((0x10, 0xFEE00000), (0x14, 0), (0x18, 0x71), (0x1C, 0)):
        io.mmio_write(0xD0000000 + part, memoryview(value.to_bytes(4, "little")))
    function.interrupt(1)
    function.interrupt(2)  # still masked
    assert controllers.arrived() == {0x71}
    assert isinstance(msix.group, EventFdGroup)
    assert [msix.group.is_pending(vector) for vector in range(3)] == [False, False, True]
    function.reset()
    assert "0 messages" in repr(controllers.interrupts)


# In real mode: interrupt 10 level-triggered on KVM's 8259s, then sleep until its handler has run three times and say so
# on port 0x502. The handler counts at 0x500 and reads port 0x500, where the device is.
WAIT_FOR_THREE = bytes.fromhex(
    "fa 31c0 8ed8 8ed0 bc0070"  # cli; ds = ss = 0; sp = 0x7000
    "c706c8010011 c706ca010000"  # vector 0x72 is 0:0x1100
    "b011 e620 e6a0 b008 e621 b070 e6a1 b004 e621 b002 e6a1 b001 e621 e6a1"  # both 8259s: vectors 8 and 0x70
    "b0fb e621 e6a1 bad104 b004 ee"  # unmask the cascade and 10; ELCR: 10 is a level
    "fb f4 803e000503 72f8"  # sti; again: hlt; compare the count with 3; below: again
    "fa ba0205 ee f4"  # cli; out to 0x502; hlt
)
HANDLER = bytes.fromhex("5052 fe060005 ba0005 ec b020 e6a0 e620 5a58 cf")


def test_a_level_interrupt_comes_again_until_its_device_is_content() -> None:
    wants, seen = 3, list[int]()

    class Device:
        """Wants to be read three times."""

        def read(self, offset: int, buffer: memoryview) -> None:
            nonlocal wants
            wants -= 1
            seen.append(wants)
            buffer[:] = bytes(len(buffer))

        def write(self, offset: int, data: memoryview) -> None:
            loop.stop()

    def on_exit(vcpu: VcpuFd, exit_: VcpuExit) -> None:
        match exit_:
            case IoIn(port, data):
                io.pio_read(port, data)
            case IoOut(port, data):
                io.pio_write(port, data)

    io = IoManager()
    io.register_pio(Device(), [BusRange(0x500, 4)])
    with mmap.mmap(-1, 1 << 16) as memory, Kvm() as kvm, kvm.create_vm() as vm, EventLoop() as loop:
        memory[0x1000 : 0x1000 + len(WAIT_FOR_THREE)] = WAIT_FOR_THREE
        memory[0x1100 : 0x1100 + len(HANDLER)] = HANDLER
        vm.set_user_memory_region(0, 0, memory)
        vm.create_irq_chip()
        interrupts = KvmInterrupts(vm, loop)
        line = interrupts.level(10)
        assert isinstance(line, EventFdLevelInterrupt)
        line.set_status_checker(lambda: wants > 0)
        with vm.create_vcpu(0) as vcpu:
            setup_real_mode(vcpu, 0x1000)
            with RunControl([vcpu], on_exit) as control:
                control.start()
                line.assert_()
                loop.call_later(60, loop.stop)
                loop.run()
        interrupts.close()
        assert (memory[0x500], seen) == (3, [2, 1, 0])
