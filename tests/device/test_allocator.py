"""Pools: alignment, windows, reuse, and errors that say who holds what."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyvmm_device import (
    BusRange,
    DeviceResources,
    IdPool,
    InvalidRange,
    InvalidResource,
    IoManager,
    Ram,
    RangePool,
    ResourceExhausted,
    ResourceTaken,
    SystemAllocator,
)
from pyvmm_device import resources as res


def test_fixed_and_any_and_reuse() -> None:
    pool = RangePool("ports", BusRange(0x100, 0x100))
    first = pool.allocate(0x10, 0x10, holder="a")
    assert first == BusRange(0x100, 0x10)
    assert pool.allocate_at(0x118, 8, "b") == BusRange(0x118, 8)
    assert pool.allocate(0x10, 0x10, holder="c") == BusRange(0x120, 0x10)
    pool.free(first)
    assert pool.allocate(0x18, 8, holder="d") == BusRange(0x100, 0x18)
    with pytest.raises(InvalidRange):
        pool.free(first)


def test_errors_name_the_holder() -> None:
    pool = RangePool("ports", BusRange(0x100, 0x20))
    pool.allocate_at(0x100, 0x18, "the disk")
    with pytest.raises(ResourceTaken, match="held by the disk") as taken:
        pool.allocate_at(0x110, 8, "the net")
    assert taken.value.holder == "the disk"
    with pytest.raises(ResourceExhausted, match="the disk") as exhausted:
        pool.allocate(0x10, holder="the net")
    assert exhausted.value.holders == ["the disk"]
    with pytest.raises(ResourceTaken, match="the pool is 0x100"):
        pool.allocate_at(0x200, 8)


@pytest.mark.parametrize(("size", "align"), [(0, 1), (-1, 1), (8, 0), (8, 3), (8, -8)])
def test_requests_that_make_no_sense(size: int, align: int) -> None:
    with pytest.raises(InvalidResource):
        RangePool("x", BusRange(0, 100)).allocate(size, align)


@given(st.lists(st.tuples(st.integers(1, 40), st.sampled_from([1, 2, 4, 8, 16]), st.booleans()), max_size=30))
def test_ranges_never_overlap_and_freed_ones_come_back(requests: list[tuple[int, int, bool]]) -> None:
    pool = RangePool("pool", BusRange(3, 100), BusRange(200, 50))
    held: list[BusRange] = []
    for size, align, free_one in requests:
        if free_one and held:
            pool.free(held.pop(0))
        try:
            given_range = pool.allocate(size, align)
        except ResourceExhausted:
            continue
        assert given_range.base % align == 0
        assert not any(given_range.overlaps(other) for other in held)
        assert any(given_range.base in window and given_range.last in window for window in pool.windows)
        held.append(given_range)
    for given_range in held:
        pool.free(given_range)
    assert pool.free_bytes() == 150


def test_numbers() -> None:
    pool = IdPool("interrupts", [5, 6, 7, 10, 11])
    assert [pool.allocate(holder="a"), pool.allocate_at(6, "b"), pool.allocate(2, "c")] == [5, 6, 10]
    with pytest.raises(ResourceExhausted):
        pool.allocate(2)
    assert pool.holder(11) == "c"
    pool.free(10, 2)
    assert pool.holder(11) is None
    for number in (-1, 8):
        with pytest.raises((ResourceTaken, InvalidResource)):
            pool.allocate_at(number)


def test_a_device_gets_all_or_nothing() -> None:
    machine = SystemAllocator()
    given_resources = machine.allocate(
        [
            res.PioAddress(8),
            res.MmioAddress(0x2000),
            res.MmioAddress(0x1000, range=(1 << 39, (1 << 40) - 1)),
            res.LegacyIrq(),
            res.MsiIrqs("pci-msix", 4),
            res.KvmMemSlot(),
            res.PciSlot(3),
            res.MacAddress("52:54:00:12:34:56"),
        ],
        "net",
    )
    assert given_resources.get_pio_address_ranges() == [BusRange(0x1000, 8)]
    assert given_resources.get_mmio_address_ranges() == [BusRange(0xD0000000, 0x2000), BusRange(1 << 39, 0x1000)]
    assert given_resources.get_legacy_irq() == 5
    assert given_resources.get_pci_msix_irqs() == (24, 4)
    assert given_resources.get_pci_msi_irqs() is None
    assert given_resources.get_generic_msi_irqs() is None
    assert given_resources.get_kvm_mem_slots() == [0]
    assert given_resources.get_pci_slot() == 3
    assert given_resources.get_mac_address() == "52:54:00:12:34:56"
    assert len(given_resources) == len(given_resources.get_all_resources()) == 8

    before = repr(machine)
    with pytest.raises(ResourceTaken, match="net"):
        machine.allocate([res.PioAddress(8), res.PciSlot(3)], "disk")
    assert repr(machine) == before
    machine.free(given_resources)
    assert machine.allocate([res.LegacyIrq(5), res.PciSlot(3)]).get_legacy_irq() == 5


def test_a_range_without_choice_is_that_range() -> None:
    machine = SystemAllocator(pio=BusRange(0, 0x10000))
    wanted = res.PioAddress(8, range=(0x3F8, 0x3FF))
    assert machine.allocate([wanted], "uart").get_pio_address_ranges() == [BusRange(0x3F8, 8)]
    with pytest.raises(ResourceTaken, match="uart"):
        machine.allocate([wanted])
    with pytest.raises(InvalidResource):
        machine.allocate([res.PioAddress(8, 16, (0x2F8, 0x2FF))])


@pytest.mark.parametrize(
    "make",
    [
        lambda: res.PioAddress(0),
        lambda: res.PioAddress(8, 3),
        lambda: res.PioAddress(8, range=(0x10, 0x12)),
        lambda: res.MsiIrqs("pci", 1),
        lambda: res.MsiIrqs("pci-msi", 0),
        lambda: res.MacAddress("52:54"),
    ],
)
def test_constraints_that_contradict_themselves(make: object) -> None:
    with pytest.raises(InvalidResource):
        make()  # type: ignore[operator]


def test_constraints_compare_and_show_themselves() -> None:
    assert res.PioAddress(8) == res.PioAddress(8) != res.MmioAddress(8)
    assert res.PioAddress(8) != res.PioAddress(16)
    assert len({res.LegacyIrq(4), res.LegacyIrq(4)}) == 1
    assert repr(res.MmioAddress(0x2000)) == "MmioAddress(0x2000, 0x1000, None)"


def test_registering_what_was_given() -> None:
    """Upstream's IoManager leaves a part behind when a later range is refused."""
    io, machine = IoManager(), SystemAllocator()
    given_resources = machine.allocate([res.PioAddress(8), res.MmioAddress(0x1000)])
    io.register_resources(Ram(8), given_resources)
    other = DeviceResources()
    other.append(res.PioAddressRange(0x2000, 8))
    other.append(res.MmioAddressRange(0xD0000800, 0x10))
    with pytest.raises(Exception, match="overlaps"):
        io.register_resources(Ram(8), other)
    assert io.pio.device(0x2000) is None
    assert io.deregister_resources(given_resources) == 2
    assert io.deregister_resources(given_resources) == 0
