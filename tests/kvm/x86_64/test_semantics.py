"""What is easy to get wrong about KVM, point by point, as a VMM meets it."""

from __future__ import annotations

import errno
import mmap
import os
import struct
import time
from typing import TYPE_CHECKING

import pytest

from pyvmm_kvm import (
    Again,
    Cap,
    Hlt,
    Intr,
    IoEventAddress,
    IoOut,
    IrqRoute,
    IrqRouting,
    Kvm,
    MmioWrite,
    MpState,
    MsrError,
    Msrs,
)

from ..checks import check_doorbells, code_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Guest

pytestmark = pytest.mark.kvm


# run() never retries: EINTR and EAGAIN are values


def test_a_waiting_vcpu_answers_with_again_and_not_an_exception(kvm: Kvm) -> None:
    with kvm.create_vm() as vm:
        vm.create_irq_chip()
        with vm.create_vcpu(0), vm.create_vcpu(1) as second:
            assert second.get_mp_state().mp_state == MpState.UNINITIALIZED
            second.set_kvm_immediate_exit(1)
            # the kernel says EINTR or EAGAIN depending on its version; both are values here
            assert isinstance(second.run(), (Again, Intr))


# data are live, writable views into the run page, of exactly the size of the access


@pytest.mark.parametrize(("code", "size"), [("ee", 1), ("ef", 2), ("66ef", 4)])
def test_output_has_the_width_of_the_access(boot: Callable[..., Guest], code: str, size: int) -> None:
    # mov eax,0x44332211; mov dx,0x510; out
    guest = boot("66 b8 11 22 33 44 ba 10 05" + code + "f4")
    exit_ = guest.vcpu.run()
    assert isinstance(exit_, IoOut)
    assert bytes(exit_.data) == bytes.fromhex("11223344")[:size]
    assert not exit_.data.readonly


@pytest.mark.parametrize(("code", "size"), [("a20000", 1), ("a30000", 2), ("66a30000", 4)])
def test_memory_mapped_writes_have_the_width_of_the_access(boot: Callable[..., Guest], code: str, size: int) -> None:
    guest = boot("66 b8 11 22 33 44" + code + "f4")
    sregs = guest.vcpu.get_sregs()
    sregs.ds.base = 0x20000
    guest.vcpu.set_sregs(sregs)
    exit_ = guest.vcpu.run()
    assert isinstance(exit_, MmioWrite)
    assert (exit_.addr, bytes(exit_.data)) == (0x20000, bytes.fromhex("11223344")[:size])


def test_the_same_event_is_the_same_object_again_and_many_do_not_pile_up(boot: Callable[..., Guest]) -> None:
    # again: inc dx; out dx,al; jmp again
    guest = boot("42 ee eb fc")
    first = guest.vcpu.run()
    assert isinstance(first, IoOut)
    port = first.port
    for _ in range(3000):
        guest.vcpu.run()
    assert len(guest.vcpu._known) <= 2 * 128 + 5
    assert first.port == port, "an exit that somebody kept keeps its port"
    loop = boot("e6 10 eb fc")
    seen = {id(loop.vcpu.run()) for _ in range(100)}
    assert len(seen) == 2, "two of them take turns where nobody keeps one"


# the mapping is as large as the kernel says; the coalesced ring lies behind it, port entries included


def test_ports_are_coalesced_too_and_come_in_order(boot: Callable[..., Guest], kvm: Kvm) -> None:
    if not kvm.check_extension(Cap.COALESCED_PIO):
        pytest.skip("this kernel coalesces memory only")
    # mov al,1; out 0x70,al; inc al; out 0x70,al; hlt
    guest = boot("b0 01 e6 70 fe c0 e6 70 f4", prepare=lambda vm: vm.register_coalesced_mmio(0x70, 1, pio=True))
    assert len(guest.vcpu.get_kvm_run()) == kvm.get_vcpu_mmap_size() > 4096
    assert isinstance(guest.vcpu.run(), Hlt)
    assert [guest.vcpu.coalesced_mmio_read() for _ in range(3)] == [(0x70, b"\1", True), (0x70, b"\2", True), None]
    guest.vm.unregister_coalesced_mmio(0x70, 1, pio=True)


def test_a_full_ring_exits_and_goes_on(boot: Callable[..., Guest]) -> None:
    # again: out 0x70,al; inc ax; jmp again
    guest = boot("e6 70 40 eb fb", prepare=lambda vm: vm.register_coalesced_mmio(0x70, 1, pio=True))
    exit_ = guest.vcpu.run()
    assert isinstance(exit_, IoOut)
    entries = []
    while entry := guest.vcpu.coalesced_mmio_read():
        entries.append(entry[1][0])
    capacity = (mmap.PAGESIZE - 8) // 24
    assert entries == [value & 0xFF for value in range(len(entries))]
    # one place stays free; kernels before 6.12 computed their room modulo 2 ** 32 first and stop earlier
    assert len(entries) in (capacity - 2, capacity - 1, (1 << 32) % capacity - 1)
    assert exit_.data[0] == len(entries) & 0xFF


# variable-length structures: refused before the call where they cannot fit, short counts name the culprit


def test_sizes_are_checked_before_the_kernel_sees_them(kvm: Kvm, boot: Callable[..., Guest]) -> None:
    assert code_of(lambda: kvm.get_supported_cpuid(257)) == errno.ENOMEM
    assert code_of(lambda: kvm.get_supported_cpuid(2)) == errno.E2BIG
    table = kvm.get_supported_cpuid()
    assert 2 < len(table) < 256
    guest = boot("f4")
    assert code_of(lambda: guest.vcpu.get_cpuid2(1)) == errno.E2BIG
    # more registers than one call takes go in several
    many = list(kvm.get_msr_index_list()) * 10
    usable = [index for index in many if index in (0x174, 0x175, 0x176)]
    while len(usable) <= 300:
        usable += usable
    assert set(guest.vcpu.get_msrs(usable)) == {0x174, 0x175, 0x176}
    with pytest.raises(MsrError) as caught:
        guest.vcpu.get_msrs([*usable, 0xDEAD])
    assert (caught.value.index, caught.value.done) == (0xDEAD, len(usable))
    with pytest.raises(MsrError, match="0xdead"):
        guest.vcpu.set_msrs(Msrs({0x174: 1, 0xDEAD: 0, 0x175: 2}))
    assert guest.vcpu.get_msrs([0x174, 0x175]) == {0x174: 1, 0x175: 0}


# the extended state is as large as the VM says


def test_extended_state_has_the_size_that_the_vm_says(boot: Callable[..., Guest]) -> None:
    guest = boot("f4")
    size = guest.vm.check_extension_raw(Cap.XSAVE2)
    area = guest.vcpu.get_xsave2(size)
    assert len(area) == max(size, 4096)
    # MXCSR lies at offset 24 of the legacy area
    struct.pack_into("<I", area, 24, 0x1FA0)
    # XSTATE_BV says that x87 and SSE state are there
    area[512] |= 3
    guest.vcpu.set_xsave2(area)
    assert struct.unpack_from("<I", guest.vcpu.get_xsave2(size), 24)[0] == 0x1FA0
    guest.vcpu.set_xsave(area[:512])
    assert len(guest.vcpu.get_xsave()) == 4096


# ioeventfd: the width of the match counts, no match means any width, unregistering repeats everything


def test_ioeventfd_matches_value_and_width(boot: Callable[..., Guest]) -> None:
    # mov dx,0x510; mov ax,7; out dx,al; out dx,ax; mov al,8; out dx,al; hlt
    check_doorbells(boot("ba 10 05 b8 07 00 ee ef b0 08 ee f4"), IoEventAddress.Pio(0x510), IoOut)


def test_ioeventfd_without_a_match_takes_every_width_at_an_address(boot: Callable[..., Guest]) -> None:
    # mov [0],al; mov [0],ax; hlt, with ds at 0x20000
    guest = boot("a2 00 00 a3 00 00 f4")
    sregs = guest.vcpu.get_sregs()
    sregs.ds.base = 0x20000
    guest.vcpu.set_sregs(sregs)
    event = os.eventfd(0, os.EFD_NONBLOCK)
    try:
        guest.vm.register_ioevent(event, IoEventAddress.Mmio(0x20000))
        assert isinstance(guest.vcpu.run(), Hlt)
        assert os.eventfd_read(event) == 2
        guest.vm.unregister_ioevent(event, IoEventAddress.Mmio(0x20000))
    finally:
        os.close(event)


# irqfd and routing


def test_irqfd_lands_where_the_last_table_says(boot: Callable[..., Guest]) -> None:
    bare, event = boot("f4"), os.eventfd(0, os.EFD_NONBLOCK)
    guest = boot("f4", prepare=lambda vm: vm.create_irq_chip())
    try:
        assert code_of(lambda: bare.vm.register_irqfd(event, 5)) == errno.EINVAL
        # the table as a whole: interrupt 5 goes to pin 6, and nothing else goes anywhere
        guest.vm.set_gsi_routing(IrqRouting([IrqRoute.irqchip(5, 0, 6)]))
        guest.vm.register_irqfd(event, 5)
        os.eventfd_write(event, 1)
        # a worker of the kernel raises the line and lowers it again
        for _ in range(2000):
            if guest.vm.get_irqchip(0).pic.irr:
                break
            time.sleep(0.001)
        assert guest.vm.get_irqchip(0).pic.irr == 1 << 6
        guest.vm.unregister_irqfd(event, 5)
        guest.vm.unregister_irqfd(event, 5)
    finally:
        os.close(event)
