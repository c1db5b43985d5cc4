"""Flattened device trees, written and read.

Source: Devicetree Specification 0.4, chapter 5.

>>> tree = Fdt()
>>> tree.root["compatible"] = "linux,dummy-virt"
>>> serial = tree.root.add("serial@9000000")
>>> serial["reg"] = cells64(0x9000000, 0x1000)
>>> read_fdt(bytes(tree)).root.find("/serial@9000000")
<Node serial@9000000 1 properties, 0 children>
"""

from pyvmm_loader.fdt.node import FdtError, Node, cells64
from pyvmm_loader.fdt.reader import read_fdt
from pyvmm_loader.fdt.tree import Fdt

__all__ = ["Fdt", "FdtError", "Node", "cells64", "read_fdt"]
