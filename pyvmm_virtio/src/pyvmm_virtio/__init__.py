"""Virtqueues, MMIO and PCI transports, and real virtio devices."""

__version__ = "0.1.0"
