"""The first root file system: archives made, read, joined and placed."""
