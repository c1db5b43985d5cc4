"""ACPI's fixed hardware, and the registers of a machine without it."""
