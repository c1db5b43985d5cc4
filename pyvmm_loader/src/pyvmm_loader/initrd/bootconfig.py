r"""Bootconfig: kernel parameters and more in a tree of keys, appended to an initrd.

The kernel finds it by the footer at the end of the initrd: size, checksum, and `#BOOTCONFIG\n`. It reads it when the
command line says `bootconfig` or its configuration forces it, and shows it in /proc/bootconfig.

Source: Documentation/admin-guide/bootconfig.rst; tools/bootconfig for what is appended.
"""

from __future__ import annotations

from struct import pack, unpack_from

from pyvmm_loader.errors import ImageTruncated, InvalidHeader
from pyvmm_loader.initrd.bootconfig_syntax import check_bootconfig

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing_extensions import Buffer

MAGIC = b"#BOOTCONFIG\n"
FOOTER_SIZE = 8 + len(MAGIC)
ALIGNMENT = 4
MAX_SIZE = 32767
"""XBC_DATA_MAX, which counts the padding: Linux lib/bootconfig.c, xbc_init."""


def append_bootconfig(initrd: Buffer, text: str) -> bytes:
    r"""Return the initrd with a bootconfig behind it; an initrd of no bytes is fine.

    The kernel takes the last bytes of the initrd for the footer, so whatever else is appended goes in before. Raises
    InvalidHeader for text that is too long, or that the kernel's parser refuses: it then takes none of it.

    >>> append_bootconfig(b"", "a=1\n")[:8]
    b'a=1\n\x00\x00\x00\x00'
    """
    try:
        data = text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InvalidHeader(f"a bootconfig that is no text: {error.reason}", field="text") from error
    if b"\0" in data:
        raise InvalidHeader("a bootconfig with a NUL in it: the kernel reads no further", field="text")
    with memoryview(initrd) as view, view.cast("B") as archive:
        # the whole must end on a boundary of 4; the padding is counted as part of the text
        padded = data + b"\0"
        padded += bytes(-(len(archive) + len(padded) + FOOTER_SIZE) % ALIGNMENT)
        if len(padded) > MAX_SIZE:
            raise InvalidHeader(
                f"a bootconfig of {len(padded)} bytes with its NUL and padding: the kernel takes {MAX_SIZE} at most",
                field="size",
                value=len(padded),
            )
        check_bootconfig(data)
        return bytes(archive) + padded + pack("<II", len(padded), sum(padded) & 0xFFFFFFFF) + MAGIC


def split_bootconfig(initrd: Buffer) -> tuple[bytes, str | None]:
    """Return the initrd without its bootconfig, and the bootconfig's text, or None where there is none.

    Raises ImageTruncated and InvalidHeader for a footer that does not fit what is before it.
    """
    with memoryview(initrd) as view:
        data = bytes(view)
    if not data.endswith(MAGIC):
        return data, None
    if len(data) < FOOTER_SIZE:
        raise ImageTruncated(
            f"a bootconfig's footer has {FOOTER_SIZE} bytes, these are {len(data)}", needed=FOOTER_SIZE
        )
    size, checksum = unpack_from("<II", data, len(data) - FOOTER_SIZE)
    end = len(data) - FOOTER_SIZE
    if size > min(end, MAX_SIZE):
        raise ImageTruncated(f"a bootconfig of {size} bytes in an initrd of {end}", needed=size, available=end)
    text = data[end - size : end]
    if sum(text) & 0xFFFFFFFF != checksum:
        raise InvalidHeader(
            f"the bootconfig's bytes add up to {sum(text):#x}, its footer says {checksum:#x}", field="checksum"
        )
    try:
        return data[: end - size], text.rstrip(b"\0").decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidHeader(f"the bootconfig is no UTF-8: {error.reason}", field="text") from error
