"""Eventfds that become interrupts: what arrives in the controllers of a processor that does not run."""

from __future__ import annotations

import errno
import os
import threading
from typing import TYPE_CHECKING, NamedTuple

import pytest

from pyvmm_kvm import GsiRouter, IrqChip, IrqRoute, IrqRouting, Kvm, KvmError, VcpuFd, VmFd

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.kvm

APIC_SVR, APIC_IRR = 0xF0, 0x200


class Message(NamedTuple):
    address: int
    data: int
    devid: int = 0x18


def message(vector: int) -> Message:
    return Message(0xFEE00000, vector)


class Machine(NamedTuple):
    """A VM with one processor whose local APIC is on."""

    vm: VmFd
    vcpu: VcpuFd

    def arrived(self) -> set[int]:
        """The vectors that wait for the processor."""
        lapic = self.vcpu.get_lapic()
        words = [lapic.get_reg(APIC_IRR + 16 * number) for number in range(8)]
        return {vector for vector in range(256) if words[vector // 32] >> vector % 32 & 1}

    def requested(self) -> int:
        """The lines that the PIC master sees."""
        return self.vm.get_irqchip(IrqChip.PIC_MASTER).pic.irr


@pytest.fixture
def machine(kvm: Kvm) -> Iterator[Machine]:
    with kvm.create_vm() as vm:
        vm.create_irq_chip()
        with vm.create_vcpu(0) as vcpu:
            lapic = vcpu.get_lapic()
            lapic.set_reg(APIC_SVR, 0x1FF)
            vcpu.set_lapic(lapic)
            yield Machine(vm, vcpu)


@pytest.fixture
def events() -> Iterator[list[int]]:
    made = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(3)]
    yield made
    for fd in made:
        os.close(fd)


def test_an_eventfd_becomes_the_message_it_has_now(machine: Machine, events: list[int]) -> None:
    router = GsiRouter(machine.vm)
    router.attach(events[0], message(0x30))
    router.attach(events[1], message(0x41))
    os.eventfd_write(events[1], 1)
    assert machine.arrived() == {0x41}
    router.attach(events[1], message(0x42))
    os.eventfd_write(events[1], 1)
    assert machine.arrived() == {0x41, 0x42}


def test_a_detached_eventfd_keeps_what_is_written_and_its_number(machine: Machine, events: list[int]) -> None:
    router = GsiRouter(machine.vm)
    for fd, vector in zip(events, (0x30, 0x31, 0x32), strict=True):
        router.attach(fd, message(vector))
    router.detach(events[1])
    router.detach(events[1])
    os.eventfd_write(events[1], 1)
    assert os.eventfd_read(events[1]) == 1
    assert machine.arrived() == set()
    router.attach(events[1], message(0x50))
    os.eventfd_write(events[1], 1)
    assert machine.arrived() == {0x50}
    assert [route.gsi for route in router.table()[-3:]] == [24, 25, 26]


def test_detaching_what_was_never_attached_does_nothing(machine: Machine, events: list[int]) -> None:
    GsiRouter(machine.vm).detach(events[0])


def test_lines_stay_in_every_table(machine: Machine, events: list[int]) -> None:
    GsiRouter(machine.vm).attach(events[0], message(0x30))
    machine.vm.set_irq_line(5, True)
    assert machine.requested() >> 5 & 1


def test_without_routes_of_lines_a_line_leads_nowhere(machine: Machine, events: list[int]) -> None:
    GsiRouter(machine.vm, lines=IrqRouting()).attach(events[0], message(0x30))
    machine.vm.set_irq_line(5, True)
    assert not machine.requested() >> 5 & 1


def test_a_number_stands_for_a_message_until_it_does_not(machine: Machine) -> None:
    router = GsiRouter(machine.vm, lines=IrqRouting())
    router.route(5, message(0x33))
    assert router.table() == [IrqRoute.msi(5, 0xFEE00000, 0x33)]
    machine.vm.set_irq_line(5, True)
    assert machine.arrived() == {0x33}
    router.route(5, None)
    router.route(6, None)
    assert router.table() == []


def test_the_table_is_given_to_kvm_only_when_it_changes(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    router = GsiRouter(machine.vm)
    given: list[int] = []
    monkeypatch.setattr(VmFd, "set_gsi_routing", lambda vm, table: given.append(len(table)))
    for vector in (0x33, 0x33, 0x34):
        router.route(40, message(vector))
    assert len(given) == 2


def test_one_message_now(machine: Machine) -> None:
    assert GsiRouter(machine.vm).send(message(0x60)) > 0
    assert machine.arrived() == {0x60}


def test_when_all_numbers_are_taken(machine: Machine, events: list[int]) -> None:
    router = GsiRouter(machine.vm, gsis=range(24, 26))
    for fd in events[:2]:
        router.attach(fd, message(0x30 + fd))
    before = router.table()
    with pytest.raises(KvmError, match="all 2 GSIs for eventfds are taken") as caught:
        router.attach(events[2], message(0x40))
    assert caught.value.errno == errno.ENOSPC
    assert router.table() == before
    router.attach(events[0], message(0x41))
    os.eventfd_write(events[0], 1)
    assert machine.arrived() == {0x41}


def test_messages_say_who_sends_them_where_that_is_wanted(machine: Machine, events: list[int]) -> None:
    router = GsiRouter(machine.vm, gsis=[24], devids=True)
    router.attach(events[0], message(0x30))
    assert router.table()[-1] == IrqRoute.msi(24, 0xFEE00000, 0x30, 0x18)
    assert router.send(message(0x31)) == 1
    os.eventfd_write(events[0], 1)
    assert machine.arrived() == {0x30, 0x31}


def test_a_table_that_kvm_refuses_changes_nothing(machine: Machine, events: list[int]) -> None:
    router = GsiRouter(machine.vm, gsis=[1 << 20, 24])
    with pytest.raises(KvmError) as caught:
        router.attach(events[0], message(0x30))
    assert caught.value.errno == errno.EINVAL
    assert router.table() == router.lines
    router.attach(events[1], message(0x31))
    os.eventfd_write(events[1], 1)
    assert machine.arrived() == {0x31}


def test_threads_configure_at_the_same_time(machine: Machine) -> None:
    router = GsiRouter(machine.vm)
    events = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(32)]

    def attach(own: list[int]) -> None:
        for fd in own:
            router.attach(fd, message(0x40 + events.index(fd)))

    threads = [threading.Thread(target=attach, args=(events[start::4],)) for start in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for fd in events:
        os.eventfd_write(fd, 1)
    assert machine.arrived() == set(range(0x40, 0x60))
    assert sorted(route.gsi for route in router.table() if route.gsi >= 24) == list(range(24, 56))
    assert router.attached == set(events)
    for fd in events:
        router.detach(fd)
        os.close(fd)
    assert "0 eventfds attached" in repr(router)
