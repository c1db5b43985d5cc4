"""What can go wrong between a kernel file and its first instruction: one tree, each error with cause and cure."""

from __future__ import annotations


class LoaderError(Exception):
    """Root of everything `pyvmm_loader` raises on purpose. Facts are attributes; the text is one line."""

    def __init__(self, message: str, **facts: object) -> None:
        super().__init__(message)
        self.facts = facts

    def __getattr__(self, name: str) -> object:
        facts: dict[str, object] = self.__dict__.get("facts", {})
        if name in facts:
            return facts[name]
        raise AttributeError(name)


class ImageError(LoaderError):
    """The file is at fault: it cannot be what it was passed as."""


class ImageNotFound(ImageError):
    """There is no readable file at `path`."""


class ImageEmpty(ImageError):
    """The file has no bytes."""


class ImageTruncated(ImageError):
    """A header points behind the end of the file (`needed`, `available` in bytes)."""


class NotAKernel(ImageError):
    """No format known here has these first bytes."""


class WrongArchitecture(ImageError):
    """A kernel for another machine (`arch`)."""


class InvalidHeader(ImageError):
    """A header field contradicts its specification (`field`, `value`)."""


class EntryNotOffered(ImageError):
    """The image has no such entry point (`entry`, `offered`)."""


class PlacementError(LoaderError):
    """Image and guest memory do not fit together."""


class MemoryTooSmall(PlacementError):
    """Something ends behind the guest's RAM (`start`, `end`)."""


class InitrdTooLarge(PlacementError):
    """No place in RAM obeys the protocol for an initrd of `size` bytes."""


class Overlap(PlacementError):
    """Two things of a plan want the same bytes (`first`, `second`)."""


class ProtocolViolation(PlacementError):
    """A rule of the boot protocol is broken."""


class FieldRange(LoaderError, ValueError):
    """A number that its field in a table cannot hold (`value`, `bits`)."""


class CmdlineError(LoaderError, ValueError):
    """Root of what `Cmdline` refuses."""


class InvalidAscii(CmdlineError):
    """A character outside 0x20..0x7e."""


class HasSpace(CmdlineError):
    """A space in a key."""


class NoQuoteSpace(HasSpace):
    """A space in a value that is not wrapped in double quotes."""


class HasEquals(CmdlineError):
    """An equals sign in a key."""


class InvalidQuote(CmdlineError):
    """Double quotes elsewhere than around the whole value."""


class MissingVal(CmdlineError):
    """A key without a value."""


class MmioSize(CmdlineError):
    """A virtio-mmio window of no bytes."""


class NoBootArgsInserted(CmdlineError):
    """Arguments for init, but none for the kernel."""


class InvalidCapacity(CmdlineError):
    """A capacity of 0 has no room for the terminating NUL."""


class TooLarge(InvalidCapacity):
    """The command line does not fit its `capacity`; linux-loader's `try_from` says InvalidCapacity for that as well."""
