"""Which tables a kernel finds its machine by: ACPI's, or those of the MultiProcessor Specification."""

from __future__ import annotations

import mmap
import os
import stat

ELF = b"\x7fELF"
SIGNATURE = b"RSD PTR "
"""What a kernel with ACPI looks for in memory (ACPI 6.5, 5.2.5.1)."""


def reads_acpi(path: str | os.PathLike[str]) -> bool:
    """Say whether a kernel finds its processors and devices by ACPI.

    An ELF image is searched for what it would search for itself. Any other is taken for a distribution's, which all
    read ACPI and, as Debian's for clouds, may read nothing else: to look into it, it would have to be unpacked.

    What is no file that can be searched is not refused here, but by whoever loads it.
    """
    try:
        known = os.stat(path)
        if not stat.S_ISREG(known.st_mode) or not known.st_size:
            return True
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return data[:4] != ELF or data.find(SIGNATURE) >= 0
    except OSError:
        return True
