#!/usr/bin/env python3
"""A virtual machine monitor that boots Linux, short enough to read in one sitting.

The five packages supply the parts; this file wires them together and owns every decision: what the machine looks
like, what happens on each exit, and when the machine has ended. Read it from `main` downwards:

    main      the command line in, the exit status out
    Machine   memory, KVM, the devices, the kernel; what to do on an exit; how a machine ends
    Terminal  the person's side of the serial console
    report    what to say when the guest crashed

Modules are imported where they are first needed: a guest of ten instructions says its first byte sooner.
"""

from __future__ import annotations

TYPE_CHECKING = False

COM1, COM1_IRQ = 0x3F8, 4
"""The first serial port, where every PC has it."""
TSS_ADDRESS = 0xFFFBD000
"""Three pages that Intel's KVM borrows below 4 GiB, far from RAM and devices."""
HALT_CHECK_SECONDS = 0.25
"""How often to look whether the guest has halted for good."""


class UsageError(Exception):
    """What was asked for cannot be done; the message says why and what to do."""


class End:
    """How the machine ended: the exit status and one line for the person."""

    def __init__(self, status: int, reason: str) -> None:
        self.status = status
        self.reason = reason
