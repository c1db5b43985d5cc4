"""What an arm64 guest reads before and at its first instruction."""
