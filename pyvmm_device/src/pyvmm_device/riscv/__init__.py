"""RISC-V's platform-level interrupt controller."""
