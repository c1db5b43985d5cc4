"""The checks, by the name that clauses use."""

from __future__ import annotations

from pyvmm_virtio.conformance.checks import basics, devices, mmio, network, pci, rings
from pyvmm_virtio.conformance.checks.registry import CHECKS, Check

__all__ = ["CHECKS", "Check", "basics", "devices", "mmio", "network", "pci", "rings"]
