"""Debug ports and pvpanic, as the programs that use them do."""

import pytest
from tests.device.access import get, put

from pyvmm_device import DebugExit, DebugPort, DeviceStateError, IoManager, PciRoot, PostPort, Pvpanic, register_ports


def test_seabios_finds_the_debug_port_and_prints() -> None:
    # qemu_debug_preinit() compares with 0xe9; debug_putc() writes a byte
    written: list[bytes] = []
    port = DebugPort(written.append)
    assert get(port, 0) == 0xE9
    put(port, 0, ord("S"))
    port.write(0, memoryview(b"eaBIOS"))
    assert b"".join(written) == b"SeaBIOS"


def test_post_codes() -> None:
    codes: list[int] = []
    port = PostPort(codes.append)
    put(port, 0, 0x55)
    assert (port.code, get(port, 0), get(port, 1), codes) == (0x55, 0x55, 0xFF, [0x55])
    other = PostPort()
    other.restore(port.state())
    assert other.code == 0x55
    put(other, 0, 1)
    other.reset()
    assert other.code == 0


@pytest.mark.parametrize(("value", "width", "status"), [(0, 1, 1), (0x10, 1, 0x21), (0x12345678, 4, 0x2468ACF1)])
def test_exit_status(value: int, width: int, status: int) -> None:
    ended: list[int] = []
    port = DebugExit(ended.append)
    assert get(port, 0, 4) == 0
    put(port, 0, value, width)
    assert ended == [status]


def test_linux_reports_a_panic() -> None:
    # pvpanic_mmio_probe() reads what is offered; pvpanic_send_event() writes what it may
    events: list[int] = []
    device = Pvpanic(events.append)
    assert get(device, 0) == 0x07
    put(device, 0, 0x01)
    put(device, 0, 0xF8)  # nothing that is offered
    assert (events, device.seen) == ([1], 1)
    other = Pvpanic(events.append, events=3)
    other.restore(device.state())
    assert (other.seen, get(other, 0), get(other, 1)) == (1, 3, 0xFF)
    other.reset()
    assert other.seen == 0
    with pytest.raises(DeviceStateError):
        other.restore({**device.state(), "seen": 256})


def test_all_of_them_on_one_bus() -> None:
    io = IoManager()
    ended: list[object] = []
    devices = (DebugPort(ended.append), PostPort(), DebugExit(ended.append), Pvpanic(ended.append))
    register_ports(io, *devices)
    assert [entry.base for entry in io.pio.entries()] == [0x80, 0xF4, 0x402, 0x505]
    for device in devices:
        device.restore(device.state())
        device.reset()
        assert type(device).__name__ in repr(device)


def test_pvpanic_on_pci() -> None:
    events: list[int] = []
    io = IoManager()
    function = Pvpanic(events.append).pci_function()
    PciRoot(io).add(function, 1)
    # pvpanic_pci_probe() maps BAR 0
    function.config_write(0x10, memoryview(b"\0\0\0\xe0"))
    function.config_write(0x04, memoryview(b"\x02\0"))
    offered = memoryview(bytearray(1))
    io.mmio_read(0xE0000000, offered)
    assert offered[0] == 0x07
    io.mmio_write(0xE0000000, memoryview(b"\x01"))
    assert events == [1]
