"""The boot protocols and other entries, by the names that users give them."""

from __future__ import annotations

ENTRIES = (
    "auto", "pvh", "linux64", "linux32", "linux16", "multiboot", "multiboot2", "reset", "arm64", "riscv64",
    "flat16", "flat32", "flat64",
)  # fmt: skip
"""What `BootPlan` can be asked for."""
