"""The 8259A pair, in the sequences of Linux's arch/x86/kernel/i8259.c and of the data sheet."""

import pytest
from tests.device.access import get, put

from pyvmm_device import DeviceStateError, InterruptError, IoManager, Pic, register_ports

MASTER, MASTER_DATA, SLAVE, SLAVE_DATA, ELCR1, ELCR2 = range(6)


def initialized(*, icw1: int = 0x11, icw4: int = 0x01, masks: tuple[int, int] = (0, 0)) -> tuple[Pic, list[bool]]:
    levels: list[bool] = []
    pic = Pic(levels.append)
    for offset, base, cascade, mask in ((MASTER, 0x30, 0x04, masks[0]), (SLAVE, 0x38, 0x02, masks[1])):
        put(pic, offset, icw1)
        for word in (base, cascade, icw4, mask):
            put(pic, offset + 1, word)
    return pic, levels


def test_linux_probes_with_the_mask_register() -> None:
    # probe_8259A(): all but the cascade are masked, and the mask has to read back
    pic = Pic(lambda level: None)
    put(pic, SLAVE_DATA, 0xFF)
    put(pic, MASTER_DATA, 0xFB)
    assert get(pic, MASTER_DATA) == 0xFB


def test_an_edge_is_delivered_once() -> None:
    pic, levels = initialized()
    line = pic.line(4)
    line.assert_()
    assert pic.pending()
    assert pic.acknowledge() == 0x34
    assert not pic.pending()
    put(pic, MASTER, 0x64)  # mask_and_ack_8259A(): a specific EOI
    assert not pic.pending()
    line.clear()
    line.trigger()
    assert pic.acknowledge() == 0x34
    assert levels == [True, False, True, False]


def test_second_chip_goes_through_the_cascade() -> None:
    pic, _ = initialized()
    pic.line(12).trigger()
    assert pic.acknowledge() == 0x3C
    for offset, isr in ((MASTER, 0x04), (SLAVE, 0x10)):
        put(pic, offset, 0x0B)
        assert get(pic, offset) == isr
    pic.line(8).trigger()  # more important, but the first chip's input 2 is in service
    assert not pic.pending()
    put(pic, SLAVE, 0x64)
    put(pic, MASTER, 0x62)
    assert pic.acknowledge() == 0x38


def test_special_fully_nested_mode_lets_the_second_chip_nest() -> None:
    pic, _ = initialized(icw4=0x11)
    pic.line(12).trigger()
    pic.acknowledge()
    pic.line(8).trigger()
    assert pic.acknowledge() == 0x38


def test_priorities_nest() -> None:
    pic, _ = initialized()
    pic.line(6).trigger()
    pic.line(3).trigger()
    assert pic.acknowledge() == 0x33
    assert not pic.pending()  # 6 waits for the end of 3
    pic.line(1).trigger()
    assert pic.acknowledge() == 0x31
    put(pic, MASTER, 0x20)  # non-specific EOI: the highest in service, 1
    assert not pic.pending()
    put(pic, MASTER, 0x20)
    assert pic.acknowledge() == 0x36
    put(pic, MASTER, 0x20)
    put(pic, MASTER, 0x20)  # nothing in service: nothing happens


def test_spurious() -> None:
    pic, _ = initialized()
    put(pic, ELCR1, 0x20)
    put(pic, ELCR2, 0x02)
    line = pic.line(5)
    line.assert_()
    line.clear()  # gone before the processor asks
    assert pic.acknowledge() == 0x37
    put(pic, MASTER, 0x0B)
    assert get(pic, MASTER) == 0  # "the ISR ... will not be set"
    inner = pic.line(9)
    inner.assert_()
    inner.clear()
    assert pic.acknowledge() == 0x3F
    assert get(pic, MASTER) == 0x04  # the first chip knows of the cascade only, and needs its EOI


def test_level_inputs_ask_until_they_are_lowered() -> None:
    pic, _ = initialized()
    put(pic, ELCR2, 0xFF)
    assert get(pic, ELCR2) == 0xDE  # the clock and the coprocessor stay edges
    put(pic, ELCR1, 0xFF)
    assert get(pic, ELCR1) == 0xF8
    line = pic.line(11)
    line.assert_()
    assert pic.acknowledge() == 0x3B
    put(pic, SLAVE, 0x20)
    put(pic, MASTER, 0x20)
    assert pic.acknowledge() == 0x3B
    line.clear()
    put(pic, SLAVE, 0x20)
    put(pic, MASTER, 0x20)
    assert not pic.pending()


def test_a_line_that_is_up_while_its_input_becomes_level() -> None:
    pic, _ = initialized()
    line = pic.line(5)
    line.assert_()
    pic.acknowledge()
    put(pic, MASTER, 0x20)
    assert not pic.pending()
    put(pic, ELCR1, 0x20)
    assert pic.pending()


def test_poll() -> None:
    pic, _ = initialized()
    put(pic, MASTER, 0x0C)
    assert get(pic, MASTER) == 0
    pic.line(1).trigger()
    put(pic, MASTER, 0x0C)
    assert get(pic, MASTER_DATA) == 0x81  # at either address
    assert not pic.pending()
    put(pic, MASTER, 0x0B)
    assert get(pic, MASTER) == 0x02


def test_automatic_end_and_rotation() -> None:
    pic, _ = initialized(icw4=0x03)
    put(pic, MASTER, 0x80)  # rotate in AEOI mode
    for _ in range(2):
        pic.line(1).trigger()
        pic.line(3).trigger()
        assert pic.acknowledge() == 0x31
        assert pic.acknowledge() == 0x33  # 1 is the least now
    put(pic, MASTER, 0x00)
    pic.line(3).trigger()
    pic.acknowledge()
    pic.line(4).trigger()
    pic.line(3).trigger()
    assert pic.acknowledge() == 0x34


def test_rotation_by_command() -> None:
    pic, _ = initialized()
    put(pic, MASTER, 0xC3)  # 3 is the least, so 4 the most important
    pic.line(3).trigger()
    pic.line(4).trigger()
    assert pic.acknowledge() == 0x34
    put(pic, MASTER, 0xA0)  # rotate on non-specific EOI
    assert pic.acknowledge() == 0x33
    put(pic, MASTER, 0xE3)  # rotate on specific EOI
    pic.line(4).trigger()
    pic.line(5).trigger()
    assert pic.acknowledge() == 0x34


def test_special_mask_mode_opens_what_is_not_masked() -> None:
    pic, _ = initialized()
    pic.line(2 + 1).trigger()
    pic.acknowledge()
    pic.line(5).trigger()
    assert not pic.pending()
    put(pic, MASTER, 0x68)
    put(pic, MASTER_DATA, 0x08)
    assert pic.acknowledge() == 0x35
    put(pic, MASTER, 0x20)  # does not end 3, which is masked
    put(pic, MASTER, 0x0B)
    assert get(pic, MASTER) == 0x08
    put(pic, MASTER, 0x48)
    put(pic, MASTER, 0x20)
    assert get(pic, MASTER) == 0


def test_initialization_forgets_edges_and_keeps_levels() -> None:
    pic, _ = initialized()
    put(pic, ELCR1, 0x20)
    pic.line(4).assert_()
    pic.line(5).assert_()
    put(pic, MASTER, 0x0A)
    assert get(pic, MASTER) == 0x30
    put(pic, MASTER, 0x12)  # single, no ICW4
    put(pic, MASTER_DATA, 0x40)
    assert get(pic, MASTER) == 0x20
    put(pic, MASTER_DATA, 0xDF)
    assert pic.acknowledge() == 0x45


def test_level_mode_by_icw1() -> None:
    pic, _ = initialized(icw1=0x19)
    line = pic.line(4)
    line.assert_()
    pic.acknowledge()
    put(pic, MASTER, 0x20)
    assert pic.pending()


def test_three_initialization_words_without_icw4() -> None:
    pic = Pic(lambda level: None)
    for offset, value in ((MASTER, 0x10), (MASTER_DATA, 0x50), (MASTER_DATA, 0x04), (MASTER_DATA, 0xAA)):
        put(pic, offset, value)
    assert get(pic, MASTER_DATA) == 0xAA


def test_reset_and_state() -> None:
    pic, levels = initialized()
    pic.line(4).assert_()
    saved = pic.state()
    seen: list[bool] = []
    other = Pic(seen.append)
    other.restore(saved)
    assert seen == [True]
    assert other.acknowledge() == 0x34
    with pytest.raises(DeviceStateError):
        other.restore({**saved, "first": {**saved["first"], "lowest": 9}})
    pic.reset()
    assert levels == [True, False]
    assert "idle" in repr(pic)
    assert repr(pic.line(4)) == "<PicLine 4>"


@pytest.mark.parametrize("irq", [-1, 2, 16])
def test_inputs_that_do_not_exist(irq: int) -> None:
    with pytest.raises(InterruptError):
        Pic(lambda level: None).line(irq)


def test_ports() -> None:
    io = IoManager()
    pic = Pic(lambda level: None)
    register_ports(io, pic)
    io.pio_write(0xA1, memoryview(b"\x5a"))
    buffer = memoryview(bytearray(1))
    io.pio_read(0xA1, buffer)
    assert buffer[0] == 0x5A == get(pic, SLAVE_DATA)
    assert get(pic, 6) == 0xFF
    io.pio_write(0x20, memoryview(b"\x0b\xfb"))  # two registers in one access
    assert get(pic, MASTER_DATA) == 0xFB
    assert "Window at 0x2" in repr(io.pio.device(0xA0))
