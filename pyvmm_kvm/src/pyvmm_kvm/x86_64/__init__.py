"""What is particular to x86-64: registers and CPUID."""
