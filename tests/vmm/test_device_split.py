"""The software 8259s, IOAPIC and 8254 carry Linux to userspace, with only the local APICs in KVM."""

import pytest
from guest import initramfs, kernel
from tests.vmm.device_machine import options
from tests.vmm.split_machine import SplitMachine
from tests.vmm.test_linux import INTRODUCTION

pytestmark = pytest.mark.guest

PATIENCE = 500
# without a timer in the local APIC, Linux takes the 8254
USE_THE_8254 = "clearcpuid=popcnt,smap,smep,umip,erms,fsrm,cx16,tsc_deadline_timer nolapic_timer"


@pytest.mark.parametrize("controller", ["ioapic", "8259"])
def test_linux_reaches_userspace(controller: str) -> None:
    words = f"wait=0 {USE_THE_8254}" + " noapic" * (controller == "8259")
    machine = SplitMachine(options(kernel.build("boot").vmlinux, initramfs.demo(), words))
    machine.loop.call_later(PATIENCE, lambda: machine.finish(3, "this took too long"))
    try:
        machine.run()
    finally:
        machine.close()
    assert machine.end == (0, "the guest powered off"), machine.console.text
    assert INTRODUCTION.search(machine.console.text)
    assert machine.ticks > 20
    if controller == "8259":
        assert machine.injected > 20
    else:
        # how many came by the 8259s before Linux found the IOAPIC is a matter of how fast the guest is
        assert machine.late < 10
        assert machine.sent
