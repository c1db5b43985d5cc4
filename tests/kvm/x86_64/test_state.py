"""Snapshots: a guest counts on in another process from the number where it was stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyvmm_kvm import IoOut, Kvm, StateError, VcpuState, VmState

from . import ticking

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from .conftest import Guest

# inc ax; out 0x10,ax; jmp
COUNT = "40 e7 10 eb fb"

CHILD = """
import mmap, sys
from pathlib import Path
from pyvmm_kvm import Kvm, IoOut, VcpuState, VmState
folder = Path(sys.argv[1])
memory = mmap.mmap(-1, 0x10000)
memory[:] = (folder / "memory").read_bytes()
with Kvm() as kvm, kvm.create_vm() as vm:
    vm.create_irq_chip()
    vm.create_pit2()
    vm.set_user_memory_region(0, 0, memory)
    with vm.create_vcpu(0) as vcpu:
        refused = VcpuState.from_bytes((folder / "vcpu").read_bytes()).restore(vcpu)
        VmState.from_bytes((folder / "vm").read_bytes()).restore(vm)
        exit_ = vcpu.run()
        assert isinstance(exit_, IoOut), exit_
        lapic = vcpu.get_lapic()
        print(int.from_bytes(exit_.data, "little"), lapic.get_reg(0x380), vm.get_pit2().channel(0).count, refused)
"""


@pytest.mark.kvm
def test_counts_on_in_another_process(boot: Callable[..., Guest], kvm: Kvm, tmp_path: Path) -> None:
    def with_chips(vm: object) -> None:
        vm.create_irq_chip()  # type: ignore[attr-defined]
        vm.create_pit2()  # type: ignore[attr-defined]

    guest = boot(COUNT, prepare=with_chips)
    lapic = guest.vcpu.get_lapic()
    lapic.set_reg(0x380, 123456)
    guest.vcpu.set_lapic(lapic)
    pit = guest.vm.get_pit2()
    pit.channel(0).count = 4321
    pit.channel(0).mode = 2
    guest.vm.set_pit2(pit)
    last = 0
    for _ in range(100):
        exit_ = guest.vcpu.run()
        assert isinstance(exit_, IoOut)
        last = int.from_bytes(exit_.data, "little")
    (tmp_path / "vcpu").write_bytes(bytes(VcpuState.save(kvm, guest.vm, guest.vcpu)))
    (tmp_path / "vm").write_bytes(bytes(VmState.save(guest.vm)))
    (tmp_path / "memory").write_bytes(guest.memory[:])
    result = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], capture_output=True, text=True, check=False, timeout=60
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split(maxsplit=3) == [str(last + 1), "123456", "4321", "[]\n"]


@pytest.mark.kvm
def test_timers_and_the_uart_go_on_in_another_process(kvm: Kvm, tmp_path: Path) -> None:
    machine = ticking.Machine(kvm)
    machine.power_on(kvm)
    machine.run_until(5)
    ticking.save(kvm, machine, tmp_path)
    stopped = machine.counts()
    assert machine.output[-1] == stopped[0] & 0xFF
    machine.close()
    command = [sys.executable, ticking.__file__, str(tmp_path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=90)
    assert result.returncode == 0, result.stderr
    facts = json.loads(result.stdout)
    assert facts["process"] != os.getpid()
    assert tuple(facts["begin"]) == stopped
    # the next byte is the next number, and none is left out
    assert facts["first"] == (stopped[0] + 1) & 0xFF
    assert facts["end"][0] - stopped[0] - facts["sent"] in (0, 1)
    assert all(end - begin >= 5 for begin, end in zip(stopped[1:], facts["end"][1:], strict=True))
    assert facts["baud"] == 115200


@pytest.mark.kvm
def test_damaged_states_are_refused(boot: Callable[..., Guest], kvm: Kvm) -> None:
    guest = boot(COUNT)
    data = bytes(VcpuState.save(kvm, guest.vm, guest.vcpu))
    assert VcpuState.from_bytes(data) == VcpuState.from_bytes(bytearray(data))
    for length in (0, 10, 20, 100, len(data) - 1):
        with pytest.raises(StateError):
            VcpuState.from_bytes(data[:length])
    with pytest.raises(StateError, match="of that kind"):
        VmState.from_bytes(data)
    with pytest.raises(StateError, match="version 9"):
        VcpuState.from_bytes(data[:8] + b"\x09" + data[9:])


@given(st.binary(max_size=300))
@settings(max_examples=50, deadline=None)
def test_noise_is_never_a_state(noise: bytes) -> None:
    with pytest.raises(StateError):
        VcpuState.from_bytes(b"pyvmmkvm\x01\0\0\0\x01\0\0\0" + noise)
