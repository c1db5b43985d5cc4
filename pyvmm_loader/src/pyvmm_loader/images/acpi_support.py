"""Which tables a kernel finds its machine by: ACPI's, or those of the MultiProcessor Specification."""

from __future__ import annotations

import mmap
import os
import stat

ELF, BZIMAGE, BZIMAGE_AT = b"\x7fELF", b"HdrS", 0x202
SIGNATURE = b"RSD PTR "
"""What a kernel with ACPI looks for in memory (ACPI 6.5, 5.2.5.1)."""


def reads_acpi(path: str | os.PathLike[str]) -> bool:
    """Say whether a kernel finds its processors and devices by ACPI.

    An ELF image is searched for what it would search for itself. A bzImage is taken for a distribution's, which all
    read ACPI and, as Debian's for clouds, may read nothing else: to look into it, it would have to be unpacked.
    Firmware and other programs bring tables of their own, or need none. What cannot be read is refused by whoever
    loads it.
    """
    try:
        known = os.stat(path)
        if not stat.S_ISREG(known.st_mode) or known.st_size < len(BZIMAGE) + BZIMAGE_AT:
            return False
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if data[:4] == ELF:
                return data.find(SIGNATURE) >= 0
            return data[BZIMAGE_AT : BZIMAGE_AT + len(BZIMAGE)] == BZIMAGE
    except OSError:
        return False
