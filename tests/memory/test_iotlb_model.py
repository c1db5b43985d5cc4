"""The IOTLB against the simplest thing that it could be: what each address means, in a dictionary."""

import random

import pytest

import pyvmm_memory as pm
from pyvmm_memory import Permissions

SPACE = 48
RIGHTS = (Permissions.No, Permissions.Read, Permissions.Write, Permissions.ReadWrite)


def check(tlb: pm.Iotlb, model: dict[int, tuple[int, Permissions]]) -> None:
    """Look every address up, and count the mappings: those that continue each other are one."""
    for iova in range(SPACE):
        if iova in model:
            target, permissions = model[iova]
            assert [(each.base, each.length) for each in tlb.lookup(iova, 1, permissions)] == [(target, 1)]
            if permissions != Permissions.ReadWrite:
                with pytest.raises(pm.IotlbFails):
                    tlb.lookup(iova, 1, Permissions.ReadWrite)
        else:
            with pytest.raises(pm.IotlbFails):
                tlb.lookup(iova, 1, Permissions.No)
    begins = 0
    for iova, (target, permissions) in model.items():
        begins += model.get(iova - 1) != (target - 1, permissions)
    assert len(tlb) == begins


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_changes_means_what_was_said_last(seed: int) -> None:
    chance = random.Random(seed)
    tlb, model = pm.Iotlb(), dict[int, tuple[int, Permissions]]()
    for _ in range(200):
        start = chance.randrange(SPACE)
        length = chance.randrange(1, SPACE - start + 1)
        before, generation = dict(model), tlb.generation
        if chance.random() < 0.7:
            target, permissions = chance.choice((0, 100, start, start + 7)), chance.choice(RIGHTS)
            tlb.set_mapping(start, target, length, permissions)
            model |= {start + at: (target + at, permissions) for at in range(length)}
        else:
            length = chance.choice((0, 1, length))
            tlb.invalidate_mapping(start, length)
            for iova in range(start, start + length):
                model.pop(iova, None)
        check(tlb, model)
        taken_back = any(
            iova not in model or model[iova][0] != target or not model[iova][1].allow(permissions)
            for iova, (target, permissions) in before.items()
        )
        assert tlb.generation >= generation + taken_back
        if not before:
            assert tlb.generation == generation


def test_a_full_table_forgets_all_but_the_newest() -> None:
    tlb = pm.Iotlb(capacity=4)
    for number in range(9):
        generation = tlb.generation
        tlb.set_mapping(number * 2, 100, 1, Permissions.Read)
        assert len(tlb) == number % 4 + 1
        assert (tlb.generation > generation) == (number in (4, 8))
