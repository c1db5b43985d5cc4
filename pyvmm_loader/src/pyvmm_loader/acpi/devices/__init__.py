r"""Devices as the DSDT describes them, one a file. Each is made of its addresses and returns AML for `\_SB`."""
