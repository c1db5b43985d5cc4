"""What only x86 has: its structures, CPUID, model-specific registers, modes and snapshots."""
