"""The lesson on a new device: its guest really rolls the die, and it is as short as it says."""

import random
import re
from pathlib import Path

import pytest

import lesson_new_device
from pyvmm_device import BusRange, IoManager
from pyvmm_kvm import IoOut


@pytest.mark.kvm
def test_the_guest_rolls_the_new_device(capsys: pytest.CaptureFixture[str]) -> None:
    die = lesson_new_device.main(seed=7)
    chance = random.Random(7)
    assert capsys.readouterr().out == "".join(str(chance.randint(1, 8)) for _ in range(5)) + "\n"
    assert die.sides == 8
    assert die.state() == {"device": "Die", "version": 1, "sides": 8, "roll": 0}


def test_the_device_is_fifteen_lines() -> None:
    source = Path(lesson_new_device.__file__).read_text()
    device = source.partition("from here\n")[2].partition("# to here")[0]
    assert sum(bool(line.strip()) for line in device.splitlines()) <= 15
    assert re.search("fifteen lines", source)


@pytest.mark.kvm
def test_a_string_instruction_reaches_a_device_byte_by_byte(tmp_path: Path) -> None:
    # mov $0x1100, %si; mov $5, %cx; mov $0x510, %dx; cld; rep outsb; hlt
    import mmap

    from pyvmm_kvm import Hlt, Kvm, setup_real_mode

    taken: list[bytes] = []

    class Port:
        def read(self, offset: int, buffer: memoryview) -> None:
            raise AssertionError

        def write(self, offset: int, data: memoryview) -> None:
            taken.append(bytes(data))

    io = IoManager()
    io.register_pio(Port(), [BusRange(0x510, 1)])
    with mmap.mmap(-1, 1 << 16) as memory, Kvm() as kvm, kvm.create_vm() as vm:
        memory[0x1000:0x100D] = bytes.fromhex("be0011b90500ba1005fcf36ef4")
        memory[0x1100:0x1105] = b"hello"
        vm.set_user_memory_region(0, 0, memory)
        with vm.create_vcpu(0) as vcpu:
            setup_real_mode(vcpu, 0x1000)
            while not isinstance(exit_ := vcpu.run(), Hlt):
                assert isinstance(exit_, IoOut)
                io.pio_write(exit_.port, exit_.data, exit_.size)
    assert b"".join(taken) == b"hello"
    assert {len(one) for one in taken} == {1}
