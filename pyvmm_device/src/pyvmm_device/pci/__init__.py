"""PCI: functions with their configuration space, BARs and interrupts, the bus they sit on, and the ways to it.

`PciFunction` is what a device is built on; `PciRoot` is a machine's bus 0 with its host bridge, reached through ports
0xcf8 and 0xcfc or through memory (ECAM). Sources: PCI Local Bus Specification 3.0, PCI Express Base 5.0 (chapter 7),
PCI Firmware 3.2.
"""
