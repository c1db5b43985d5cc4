"""The Linux KVM API, typed: system, VM, vCPU and device file descriptors, every exit as an object."""

__version__ = "0.1.0"
