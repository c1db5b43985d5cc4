"""Buses, resources, interrupts, PCI, legacy devices and the event loop of a virtual machine."""

__version__ = "0.1.0"
