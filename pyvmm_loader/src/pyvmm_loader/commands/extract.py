"""`python -m pyvmm_loader extract`: the kernel inside a bzImage, a zboot image or a compressed file, as a file."""

from __future__ import annotations

import os
from itertools import chain

from pyvmm_loader.commands.plan import size
from pyvmm_loader.errors import LoaderError
from pyvmm_loader.images.extraction import extract_pieces

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "extract",
        help="unpack the kernel inside a bzImage or a compressed file",
        description="Unpack the kernel inside: of a bzImage its vmlinux, of an EFI zboot image its Image, of a "
        "compressed file the file. Needs little memory, however large the kernel is.",
    )
    parser.add_argument("path", help="the image")
    parser.add_argument("output", help="the file to write")
    parser.add_argument(
        "--limit", type=size, help="how large it may become, such as 2G; by default 16 times the packed size and 16M"
    )
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """Do it; return what to print. What cannot be unpacked to its end leaves no file."""
    if os.path.exists(options.output) and os.path.samefile(options.path, options.output):
        raise LoaderError(f"{options.output}: is the image itself; name another file to write")
    pieces = extract_pieces(options.path, options.limit)
    first = next(pieces, b"")  # what is wrong with the image at once shows before a file is touched
    written = 0
    with open(options.output, "wb") as file:
        try:
            for piece in chain((first,), pieces):
                written += file.write(piece)
        except BaseException:
            if os.path.isfile(options.output):
                os.unlink(options.output)
            raise
    return f"{options.output}: {written} bytes"
