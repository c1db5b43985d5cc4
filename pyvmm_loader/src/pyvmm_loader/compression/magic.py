"""Tell compressed data by its first bytes."""

from __future__ import annotations

COMPRESSED = (
    (b"\x1f\x8b", "gzip"), (b"\xfd7zXZ\0", "xz"), (b"\x5d\0\0", "lzma"), (b"BZh", "bzip2"),
    (b"\x02\x21\x4c\x18", "lz4"), (b"\x04\x22\x4d\x18", "lz4"), (b"\x28\xb5\x2f\xfd", "zstd"), (b"\x89LZO", "lzo"),
)  # fmt: skip
COMPRESSIONS = tuple(sorted({name for _, name in COMPRESSED}))


def compression(view: memoryview) -> str | None:
    """Return the name of the compression, or None."""
    head = bytes(view[:6])
    for magic, name in COMPRESSED:
        if head.startswith(magic):
            return name
    return None
