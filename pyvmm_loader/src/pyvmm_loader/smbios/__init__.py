"""SMBIOS: what a machine is called and made of, for `dmidecode` and /sys/class/dmi.

Source: DMTF DSP0134, System Management BIOS Reference Specification 3.7.
"""

from pyvmm_loader.smbios.reader import read_smbios
from pyvmm_loader.smbios.structure import Structure
from pyvmm_loader.smbios.tables import MemoryDevice, Smbios

__all__ = ["MemoryDevice", "Smbios", "Structure", "read_smbios"]
