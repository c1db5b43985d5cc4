"""fw_cfg as Linux's qemu_fw_cfg and SeaBIOS drive it, and as a hostile guest does."""

import struct

import pytest

from pyvmm_device import BusRange, DeviceStateError, FwCfg, IoManager
from pyvmm_device.qemu.fw_cfg import ERROR, MMIO_SIZE, MOST_BYTES, PORT, READ, SELECT, SIZE, SKIP, WRITE
from pyvmm_memory import GuestMemoryMmap

MEMORY = 1 << 20
BLOCK, PLACE = 0x1000, 0x2000


class Guest:
    """What a driver does, by ports."""

    def __init__(self) -> None:
        self.memory = GuestMemoryMmap.from_ranges([(0, MEMORY)])
        self.written: list[bytes] = []
        self.asked = 0
        self.fw_cfg = FwCfg(self.memory)
        self.fw_cfg.add_file("opt/writable", b"abcdef", self.written.append)
        self.fw_cfg.add_file("etc/made", self.make)
        self.fw_cfg.add_file("etc/fixed", b"0123456789")
        self.io = IoManager()
        self.io.register_pio(self.fw_cfg, [BusRange(PORT, SIZE)])
        self.io.register_mmio(self.fw_cfg.mmio, [BusRange(0x9020000, MMIO_SIZE)])

    def make(self) -> bytes:
        self.asked += 1
        return b"made %d" % self.asked

    def select(self, selector: int) -> None:
        self.io.pio_write(PORT, memoryview(struct.pack("<H", selector)))

    def take(self, length: int) -> bytes:
        byte, answer = memoryview(bytearray(1)), b""
        for _ in range(length):
            self.io.pio_read(PORT + 1, byte)
            answer += bytes(byte)
        return answer

    def dma(self, control: int, length: int = 0, address: int = PLACE, block: int = BLOCK) -> int:
        self.memory.write_slice(struct.pack(">IIQ", control, length, address), BLOCK)
        self.io.pio_write(PORT + 4, memoryview(struct.pack(">I", block >> 32)))
        self.io.pio_write(PORT + 8, memoryview(struct.pack(">I", block & 0xFFFFFFFF)))
        return int.from_bytes(self.at(BLOCK, 4), "big")

    def at(self, address: int, length: int) -> bytes:
        buffer = bytearray(length)
        self.memory.read_slice(buffer, address)
        return bytes(buffer)


@pytest.fixture
def guest() -> Guest:
    return Guest()


def test_linux_probes_and_lists_the_files(guest: Guest) -> None:
    guest.select(0)
    assert guest.take(6) == b"QEMU\0\0"
    guest.select(1)
    assert struct.unpack("<I", guest.take(4)) == (3,)
    guest.select(0x19)
    (count,) = struct.unpack(">I", guest.take(4))
    files = [struct.unpack(">IHH56s", guest.take(64)) for _ in range(count)]
    assert [(size, number, name.rstrip(b"\0")) for size, number, _, name in files] == [
        (10, 0x20, b"etc/fixed"),
        (6, 0x21, b"etc/made"),
        (6, 0x22, b"opt/writable"),
    ]
    guest.select(0x4020)  # the bit for writing is of no effect
    assert guest.take(10) == b"0123456789"
    guest.select(0x23)
    assert guest.take(2) == b"\0\0"


def test_without_memory_there_is_no_dma() -> None:
    fw_cfg = FwCfg()
    answer = memoryview(bytearray(8))
    fw_cfg.read(4, answer)
    assert bytes(answer) == bytes(8)
    fw_cfg.write(4, memoryview(bytes(8)))
    fw_cfg.write(0, memoryview(b"\1\0"))
    fw_cfg.read(1, answer)
    assert answer[0] == 1


def test_a_callable_is_asked_when_it_is_selected(guest: Guest) -> None:
    guest.select(0x21)
    guest.select(0x21)
    assert guest.take(6) == b"made 2"


def test_dma_reads_skips_and_selects(guest: Guest) -> None:
    answer = memoryview(bytearray(4))
    guest.io.pio_read(PORT + 4, answer)
    assert bytes(answer) == b"QEMU"
    assert guest.dma(0x20 << 16 | SELECT | SKIP, 4) == 0
    assert guest.dma(READ, 3) == 0
    assert guest.at(PLACE, 3) == b"456"
    guest.memory.write_slice(b"x" * 8, PLACE)
    assert guest.dma(READ, 8) == 0
    assert guest.at(PLACE, 8) == b"789\0\0\0\0\0"
    assert guest.dma(SKIP, 0xFFFFFFFF) == 0
    assert guest.dma(0) == 0


def test_dma_writes_what_can_be_written(guest: Guest) -> None:
    guest.memory.write_slice(b"XY", PLACE)
    assert guest.dma(0x22 << 16 | SELECT | SKIP, 1) == 0
    assert guest.dma(WRITE, 2) == 0
    assert guest.written == [b"aXYdef"]
    assert guest.dma(WRITE, 4) == ERROR
    assert guest.dma(0x20 << 16 | SELECT | WRITE, 1) == ERROR
    assert guest.dma(0x22 << 16 | SELECT | READ, 6) == 0
    assert guest.at(PLACE, 6) == b"aXYdef"
    guest.fw_cfg.reset()
    guest.select(0x22)
    assert guest.take(6) == b"abcdef"


def test_what_the_guest_gets_wrong_is_an_error_bit(guest: Guest) -> None:
    assert guest.dma(0x20 << 16 | SELECT | READ, 10, MEMORY - 4) == ERROR
    assert guest.dma(0x20 << 16 | SELECT | READ, 10, (1 << 64) - 4) == ERROR
    assert guest.dma(READ, MOST_BYTES + 100) == ERROR
    assert guest.dma(0x23 << 16 | SELECT | READ, 3 << 20) == ERROR
    assert guest.dma(0x22 << 16 | SELECT | WRITE, 4, MEMORY) == ERROR
    guest.dma(READ, 4, block=MEMORY - 4)
    assert guest.at(MEMORY - 4, 4) == struct.pack(">I", ERROR)
    guest.dma(READ, 4, block=1 << 63)
    assert guest.written == []


def test_by_memory_it_is_big_endian(guest: Guest) -> None:
    answer = memoryview(bytearray(8))
    guest.io.mmio_write(0x9020008, memoryview(b"\0\x20"))
    guest.io.mmio_read(0x9020000, answer)
    assert bytes(answer) == b"01234567"
    guest.io.mmio_read(0x9020010, answer)
    assert bytes(answer) == b"QEMU CFG"
    guest.io.mmio_read(0x9020008, answer[:2])
    assert bytes(answer[:2]) == b"\0\0"
    guest.memory.write_slice(struct.pack(">IIQ", READ, 2, PLACE), BLOCK)
    guest.io.mmio_write(0x9020010, memoryview(struct.pack(">Q", BLOCK)))
    assert guest.at(PLACE, 2) == b"89"
    assert "FwCfgMmio of <FwCfg 3 files" in repr(guest.fw_cfg.mmio)


@pytest.mark.parametrize("name", ["", "x" * 56, "caf\xe9", "a\0b", "etc/fixed"])
def test_a_name_that_is_none(guest: Guest, name: str) -> None:
    with pytest.raises(ValueError, match="ASCII"):
        guest.fw_cfg.add_file(name, b"")


def test_what_a_vmm_gets_wrong(guest: Guest) -> None:
    for selector in (0, 0x20, 0x4002, 1 << 16, -1):
        with pytest.raises(ValueError, match="selector"):
            guest.fw_cfg.add_item(selector, b"")
    with pytest.raises(ValueError, match="callable"):
        guest.fw_cfg.add_file("a", lambda: b"", print)
    with pytest.raises(ValueError, match="bytes"):
        guest.fw_cfg.add_file("a", bytes(MOST_BYTES + 1))
    guest.fw_cfg.add_item(0x8000, b"of this architecture")
    guest.select(0x8000)
    assert guest.take(2) == b"of"


def test_a_state_of_other_files_is_refused(guest: Guest) -> None:
    state = guest.fw_cfg.state()
    for wrong in ({"written": ["00"]}, {"content": "00"}, {"offset": 5}, {"selector": 0x21}):
        with pytest.raises(DeviceStateError):
            guest.fw_cfg.restore({**state, **wrong})
