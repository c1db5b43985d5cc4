"""Eventfds that become messages to an ITS, which wants to know which device sends them."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

import pytest

from pyvmm_kvm import Cap, GsiRouter, IrqRouting, Kvm

from .machine import Machine
from .messages import DEVICE, EVENT, LPI, PENDING, TRANSLATER, with_messages

pytestmark = pytest.mark.kvm


class Message(NamedTuple):
    address: int
    data: int
    devid: int


def pending(guest: Machine) -> bool:
    guest.memory[PENDING + LPI // 8] = 0
    guest.gic.save_pending_tables()
    return guest.memory[PENDING + LPI // 8] == 1 << LPI % 8


def test_an_eventfd_becomes_an_lpi(kvm: Kvm) -> None:
    guest = Machine(kvm, its=True)
    with_messages(guest)
    assert guest.vm.check_extension(Cap.MSI_DEVID)
    event = os.eventfd(0, os.EFD_NONBLOCK)
    router = GsiRouter(guest.vm, lines=IrqRouting(), gsis=range(64, 66), devids=True)
    router.attach(event, Message(TRANSLATER, EVENT + 1, DEVICE))
    os.eventfd_write(event, 1)
    time.sleep(0.1)
    assert not pending(guest), "nobody mapped this event"
    router.attach(event, Message(TRANSLATER, EVENT, DEVICE))
    os.eventfd_write(event, 1)
    end = time.monotonic() + 5
    while not pending(guest) and time.monotonic() < end:
        time.sleep(0.01)
    assert pending(guest)
    assert router.send(Message(TRANSLATER, EVENT, DEVICE)) == 1
    assert router.send(Message(TRANSLATER, EVENT, DEVICE + 1)) == 0
    router.detach(event)
    os.close(event)
    guest.close()
