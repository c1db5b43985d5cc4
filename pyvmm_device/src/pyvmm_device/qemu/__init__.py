"""Devices that QEMU defined and guests know: fw_cfg, pvpanic, the debug ports."""
