"""What several tests look for, on whichever architecture."""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

import pytest

from pyvmm_kvm import ClosedError, KvmError, MmioRead, MmioWrite

from .guests import MMIO, ended

if TYPE_CHECKING:
    from collections.abc import Callable

    from pyvmm_kvm import IoEventAddress, VcpuExit

    from .guests import Guest


def code_of(call: Callable[[], object]) -> int:
    """The errno that a call fails with."""
    with pytest.raises(KvmError) as caught:
        call()
    assert caught.value.errno is not None
    return caught.value.errno


def number(exit_: VcpuExit) -> int:
    """What a guest wrote to MMIO."""
    assert isinstance(exit_, MmioWrite), exit_
    return int.from_bytes(exit_.data, "little")


def check_widths(guest: Guest) -> None:
    """A guest writes -2 by 1, 2, 4 and 8 bytes, reads 1 byte at 16 and 8 at 24, and writes what it read by 8 bytes."""
    for offset, width in ((0, 1), (2, 2), (4, 4), (8, 8)):
        exit_ = guest.vcpu.run()
        assert isinstance(exit_, MmioWrite)
        assert (exit_.addr, bytes(exit_.data)) == (MMIO + offset, (-2 % (1 << 64)).to_bytes(8, "little")[:width])
    for offset, answer in ((16, b"\x85"), (24, b"abcdefgh")):
        exit_ = guest.vcpu.run()
        assert isinstance(exit_, MmioRead)
        assert (exit_.addr, len(exit_.data)) == (MMIO + offset, len(answer))
        exit_.data[:] = answer
    assert [number(guest.vcpu.run()) for _ in range(2)] == [0x85, int.from_bytes(b"abcdefgh", "little")]
    assert ended(guest.vcpu.run())


def check_doorbells(guest: Guest, place: IoEventAddress, kind: type[VcpuExit]) -> None:
    """A guest writes 7 by one byte, 7 by two and 8 by one; an exit of this kind is left for what nobody registered."""
    byte, word = os.eventfd(0, os.EFD_NONBLOCK), os.eventfd(0, os.EFD_NONBLOCK)
    try:
        guest.vm.register_ioevent(byte, place, datamatch=(7, 1))
        guest.vm.register_ioevent(word, place, datamatch=(7, 2))
        assert code_of(lambda: guest.vm.register_ioevent(byte, place, datamatch=(7, 1))) == errno.EEXIST
        exit_ = guest.vcpu.run()
        assert isinstance(exit_, kind)
        assert bytes(exit_.data) == b"\x08"  # type: ignore[attr-defined]  # the kinds that are asked for have it
        assert (os.eventfd_read(byte), os.eventfd_read(word)) == (1, 1)
        for wrong in (None, (7, 4), (8, 1)):
            with pytest.raises(KvmError, match="ENOENT") as caught:
                guest.vm.unregister_ioevent(byte, place, datamatch=wrong)
            assert caught.value.errno == errno.ENOENT
        guest.vm.unregister_ioevent(byte, place, datamatch=(7, 1))
        guest.vm.unregister_ioevent(word, place, datamatch=(7, 2))
        with pytest.raises(KvmError, match="exactly this eventfd") as caught:
            guest.vm.unregister_ioevent(word, place, datamatch=(7, 2))
        assert caught.value.errno == errno.ENOENT
    finally:
        os.close(byte)
        os.close(word)


def check_closed(guest: Guest, name: str) -> None:
    """A method of a closed vCPU makes no system call: whoever gets the number next does not feel it."""
    descriptor = guest.vcpu.fileno()
    guest.vcpu.close()
    other = os.eventfd(0, os.EFD_NONBLOCK)
    if other != descriptor:
        os.dup2(other, descriptor)
    try:
        with pytest.raises(ClosedError, match="VcpuFd is closed") as caught:
            getattr(guest.vcpu, name)()
        assert caught.value.errno == errno.EBADF
        assert isinstance(caught.value, (ValueError, OSError))
        guest.vcpu.close()
        os.eventfd_write(descriptor, 1)
        assert os.eventfd_read(other) == 1
    finally:
        for fd in {other, descriptor}:
            os.close(fd)
