"""Where an initrd may lie, and what it may be made of.

Every protocol says how high it may reach: bzImage by `initrd_addr_max` (0x37FFFFFF before 2.03), a vmlinux and PVH by
the 2 GiB that the kernel maps early, arm64 by a window of 32 GiB around the kernel, riscv64 not at all. All want it
behind the kernel's own memory, and nothing else in it.

Sources: Documentation/x86/boot.rst, "initrd_addr_max"; Documentation/arm64/booting.rst;
Documentation/driver-api/early-userspace/buffer-format.rst; Documentation/x86/microcode.rst.
"""

from __future__ import annotations

from pyvmm_loader.errors import ImageEmpty, InitrdTooLarge, InvalidHeader

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from typing_extensions import Buffer

PAGE = 4096
ALIGNMENT = 4
"""The kernel unpacks what follows an archive, skipping zeros, from a boundary of four."""
MICROCODE = {"intel": "GenuineIntel", "amd": "AuthenticAMD"}


def place_initrd(size: int, ranges: Iterable[tuple[int, int]], kernel_end: int, addr_max: int) -> int:
    """Return the highest page-aligned address for `size` bytes in RAM, behind the kernel, not above `addr_max`.

    `ranges` are (start, size) pairs. An initrd that ends exactly at the end of RAM is fine. Raises InitrdTooLarge.

    >>> hex(place_initrd(5000, [(0, 64 << 20)], 0x200000, 0x7FFFFFFF))
    '0x3ffe000'
    """
    room = 0
    for start, length in sorted(ranges, reverse=True):
        low = max(start, kernel_end)
        high = min(start + length, addr_max + 1)
        at = (high - size) & ~(PAGE - 1)
        if at >= low and high > low:
            return at
        room = max(room, high - low)
    raise InitrdTooLarge(
        f"initrd of {size} bytes: the largest room behind the kernel is {max(room, 0)} bytes; "
        "give the guest more memory",
        size=size,
        room=max(room, 0),
    )


def join_initrds(parts: Sequence[Buffer], *, microcode: Buffer = b"", bootconfig: str = "") -> bytes:
    """Return several archives as the one initrd that a kernel takes: later ones overwrite files of earlier ones.

    `microcode` is an early archive (see `microcode_archive`) and comes first, `bootconfig` text comes last.
    Raises ImageEmpty for a part that has no bytes.
    """
    joined = bytearray()
    for number, part in enumerate([microcode, *parts]):
        with memoryview(part) as view, view.cast("B") as data:
            if not len(data):
                if not number:
                    continue
                raise ImageEmpty(f"initrd {number} of {len(parts)} is empty; leave it out")
            joined += bytes(-len(joined) % ALIGNMENT)
            joined += data
    if bootconfig:
        from pyvmm_loader.initrd.bootconfig import append_bootconfig

        return append_bootconfig(joined, bootconfig)
    return bytes(joined)


def microcode_archive(**blobs: Buffer) -> bytes:
    """Return the uncompressed archive that the kernel takes microcode from before it has a file system.

    >>> len(microcode_archive(intel=b"update"))
    1024
    """
    from pyvmm_loader.initrd.initramfs import Initramfs

    archive = Initramfs()
    for folder in ("kernel", "kernel/x86", "kernel/x86/microcode"):
        archive.directory(folder)
    for vendor, blob in sorted(blobs.items()):
        if vendor not in MICROCODE:
            raise InvalidHeader(f"microcode for {vendor!r}: there are {' and '.join(MICROCODE)}", field="vendor")
        archive.file(f"kernel/x86/microcode/{MICROCODE[vendor]}.bin", blob)
    return bytes(archive)
