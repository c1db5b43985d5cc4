"""A VM with one page-sized program of bytes in real mode, for the tests of every file here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from ..guests import ENTRY
from ..guests import Guest as AnyGuest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from pyvmm_kvm import Kvm, VcpuFd


class Guest(AnyGuest):
    """With all segments at 0."""

    vcpu: VcpuFd

    def __init__(self, kvm: Kvm, code: bytes, **options: object) -> None:
        super().__init__(kvm, code, **options)  # type: ignore[arg-type]
        self.point(ENTRY)

    def point(self, rip: int) -> None:
        sregs = self.vcpu.get_sregs()
        sregs.cs.base, sregs.cs.selector, sregs.ds.base = 0, 0, 0
        self.vcpu.set_sregs(sregs)
        regs = self.vcpu.get_regs()
        regs.rip, regs.rflags = rip, 2
        self.vcpu.set_regs(regs)


@pytest.fixture
def boot(kvm: Kvm) -> Iterator[Callable[..., Guest]]:
    guests = []

    def make(code: bytes | str, **options: object) -> Guest:
        guest = Guest(kvm, bytes.fromhex(code) if isinstance(code, str) else code, **options)
        guests.append(guest)
        return guest

    yield make
    for guest in guests:
        guest.close()
