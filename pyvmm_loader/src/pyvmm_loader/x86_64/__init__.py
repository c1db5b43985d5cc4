"""What an x86 guest reads before and at its first instruction."""
