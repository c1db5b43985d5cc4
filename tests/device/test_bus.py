"""The buses: the range and overlap rules of vm-device, and what the guest sees where no device is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm_device import Bus, BusRange, DeviceNotFound, DeviceOverlap, InvalidAccessLength, InvalidRange, IoManager


class Memory:
    """A device that remembers."""

    def __init__(self, size: int = 0x100) -> None:
        self.bytes = bytearray(size)

    def read(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.bytes[offset : offset + len(buffer)]

    def write(self, offset: int, data: memoryview) -> None:
        self.bytes[offset : offset + len(data)] = data


def read(io: IoManager, port: int, length: int) -> bytes:
    buffer = memoryview(bytearray(length))
    io.pio_read(port, buffer)
    return bytes(buffer)


@pytest.mark.parametrize(("base", "size"), [(0, 0), (1, 0), (2, (1 << 64) - 1), (-1, 2), (0, -1), (1 << 64, 1)])
def test_ranges_that_are_none(base: int, size: int) -> None:
    with pytest.raises(InvalidRange) as refused:
        BusRange(base, size)
    assert (refused.value.base, refused.value.size) == (base, size)


def test_the_largest_range() -> None:
    assert BusRange(1, (1 << 64) - 1).last == (1 << 64) - 1


def test_ranges_end_with_the_bus() -> None:
    with pytest.raises(InvalidRange):
        Bus(16).register(BusRange(0xFFFF, 2), Memory())


def test_overlap_names_the_holder() -> None:
    bus, holder = Bus(), Memory()
    bus.register(BusRange(0x10, 0x10), holder)
    for base, size in ((0x10, 0x10), (0, 0x11), (0x1F, 1), (0, 0x100)):
        with pytest.raises(DeviceOverlap) as refused:
            bus.register(BusRange(base, size), Memory())
        assert refused.value.holder is holder
    bus.register(BusRange(0x20, 1), Memory())
    bus.register(BusRange(0, 0x10), Memory())


def test_an_access_stays_in_one_range() -> None:
    bus, device = Bus(16), Memory()
    bus.register(BusRange(0x10, 4), device)
    bus.register(BusRange(0x14, 4), device)
    assert bus.check_access(0x12, 2) == (2, device)
    with pytest.raises(DeviceNotFound):
        bus.check_access(0x12, 4)
    with pytest.raises(InvalidAccessLength):
        bus.check_access(0xFFFF, 2)
    with pytest.raises(InvalidAccessLength):
        bus.check_access(0x10, 0)


def test_deregister_by_any_address() -> None:
    bus, device = Bus(), Memory()
    bus.register(BusRange(0x10, 4), device)
    assert bus.deregister(0x12) is device
    assert bus.device(0x10) is None
    with pytest.raises(DeviceNotFound):
        bus.deregister(0x10)


def test_unclaimed_reads_are_all_ones() -> None:
    io = IoManager()
    io.pio_write(0x80, memoryview(b"\x12"))
    assert read(io, 0x80, 4) == b"\xff" * 4


def test_registration_is_all_or_nothing() -> None:
    io = IoManager()
    io.register_pio(Memory(), [BusRange(0x20, 1)])
    with pytest.raises(DeviceOverlap):
        io.register_pio(Memory(), [BusRange(0x10, 1), BusRange(0x20, 1)])
    assert io.pio.device(0x10) is None


@given(st.lists(st.tuples(st.integers(0, 300), st.integers(1, 40)), max_size=12), st.integers(0, 350))
def test_lookup_against_a_dictionary(ranges: list[tuple[int, int]], address: int) -> None:
    bus, model = Bus(), dict[int, int]()
    devices: list[Memory] = []
    for base, size in ranges:
        device = Memory()
        if any(at in model for at in range(base, base + size)):
            with pytest.raises(DeviceOverlap):
                bus.register(BusRange(base, size), device)
            continue
        bus.register(BusRange(base, size), device)
        model.update(dict.fromkeys(range(base, base + size), len(devices)))
        devices.append(device)
    found = bus.device(address)
    assert (found[1] if found else None) is (devices[model[address]] if address in model else None)
