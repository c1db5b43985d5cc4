"""What a riscv64 guest reads before and at its first instruction."""
