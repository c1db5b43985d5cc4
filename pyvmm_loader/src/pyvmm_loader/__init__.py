"""Kernels in every boot protocol, the command line, the initrd and the tables a guest reads."""

__version__ = "0.1.0"
