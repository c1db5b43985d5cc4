"""A file with multiboot headers of either version, and which part of it goes where by their address fields."""

from __future__ import annotations

from pyvmm_loader.errors import ImageTruncated, InvalidHeader, NotAKernel
from pyvmm_loader.images import multiboot1_header as multiboot1
from pyvmm_loader.images import multiboot2_header as multiboot2
from pyvmm_loader.images.pieces import Loadable, Piece

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Header = multiboot1.Header | multiboot2.Header

VERSIONS = (("multiboot2", multiboot2.find), ("multiboot", multiboot1.find))


def headers(view: memoryview) -> dict[str, Header]:
    """Return the multiboot headers in a file, by the names of their entries, the one to prefer first."""
    found: dict[str, Header] = {}
    for name, find in VERSIONS:
        header = find(view)
        if header is not None:
            found[name] = header
    return found


class MultibootFile:
    """A file that is no ELF and says by a multiboot header's address fields where it goes."""

    __slots__ = ("format", "headers", "name", "view")

    arch = "x86"

    def __init__(self, view: memoryview, name: str = "<buffer>") -> None:
        self.view = view
        self.name = name
        self.headers = headers(view)
        if not self.headers:
            raise NotAKernel(f"{name}: no multiboot header", path=name)
        self.format = next(iter(self.headers))

    def entries(self) -> list[str]:
        """Return `multiboot2`, `multiboot` or both."""
        refused = self.refused()
        return [name for name in self.headers if name not in refused]

    def refused(self) -> dict[str, str]:
        """Return which header cannot be obeyed, and why."""
        reasons = {}
        for name, header in self.headers.items():
            reason = header.refusal()
            if reason is None and header.addresses is None:
                reason = "its header has no address fields, and the file is no ELF"
            if reason is not None:
                reasons[name] = reason
        return reasons

    def version(self) -> str | None:
        """Return None: multiboot headers name no release."""
        return None

    def facts(self) -> dict[str, Any]:
        """Return what the headers say."""
        return describe(self.headers)

    def loadable(self, header: Header) -> Loadable:
        """Return the part of the file to load, by the header's address fields."""
        return by_addresses(self.view, self.name, header)

    def close(self) -> None:
        """Do nothing; the file's view belongs to the caller."""


def describe(found: dict[str, Header]) -> dict[str, Any]:
    """Return the headers as `inspect` shows them."""
    facts: dict[str, Any] = {}
    for name, header in found.items():
        facts[f"{name}_offset"] = header.offset
        if isinstance(header, multiboot2.Header):
            facts["multiboot2_tags"] = [
                multiboot2.NAMES[kind] if kind < len(multiboot2.NAMES) else str(kind) for kind, _ in header.tags
            ]
            facts["multiboot2_ignored"] = header.ignored()
        else:
            facts["multiboot_flags"] = header.flags
    return facts


def by_addresses(view: memoryview, name: str, header: Header) -> Loadable:
    """Return what the address fields (multiboot 1) or the address tag (multiboot 2) say.

    Raises InvalidHeader where they contradict each other, ImageTruncated where they leave the file.
    """
    if header.addresses is None:
        raise InvalidHeader(f"{name}: no address fields in its multiboot header", field="flags")
    header_addr, load, load_end, bss_end = header.addresses[:4]
    entry = header.entry if isinstance(header, multiboot2.Header) else header.addresses[4] if header.addresses else None
    if entry is None:
        raise InvalidHeader(f"{name}: an address tag without an entry address tag", field="entry_addr")
    # "The file offset of the load address is the header's offset minus (header_addr - load_addr)"; multiboot 2
    # says of load_addr 0xffffffff that the file is loaded from its beginning.
    if load == 0xFFFFFFFF and isinstance(header, multiboot2.Header):
        load = header_addr - header.offset
    offset = header.offset - (header_addr - load)
    # load_end_addr 0: "the text and data segments occupy the whole OS image file".
    size = len(view) - offset if load_end == 0 else load_end - load
    if load > header_addr or offset < 0 or load < 0 or size < 0:
        raise InvalidHeader(f"{name}: the address fields of its multiboot header contradict each other", field="load")
    if offset + size > len(view):
        raise ImageTruncated(
            f"{name}: its multiboot header wants bytes up to {offset + size:#x}, the file ends at {len(view):#x}",
            needed=offset + size,
            available=len(view),
        )
    memsz = size if bss_end == 0 else bss_end - load
    if memsz < size:
        raise InvalidHeader(f"{name}: bss_end_addr lies inside the loaded part", field="bss_end_addr", value=bss_end)
    return Loadable([Piece(load, offset, size, memsz)], entry)
