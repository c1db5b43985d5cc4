"""`python -m pyvmm_loader inspect`: what an image is, for people or as JSON."""

from __future__ import annotations

import json
import sys

from pyvmm_loader.errors import ImageError
from pyvmm_loader.images.inspection import inspect

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "inspect",
        help="say what an image is",
        description="Say which format an image has, for which processor it is, and by which boot protocols it starts. "
        "What is none, or is damaged, ends with status 1 and one line on standard error that says why; with --json, "
        "a file of no format known here is an object as well, of the format 'unknown'.",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("path", help="the image, compressed or not")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """Do it; return what to print."""
    try:
        found = inspect(options.path)
    except ImageError as error:
        if options.json and "kind" in error.facts:
            sys.stdout.write(json.dumps(unknown(options.path, error)) + "\n")
        raise
    if options.json:
        return json.dumps(found)
    return "\n".join([f"{key:<16} {show(value)}" for key, value in found.items()])


def unknown(path: str, error: ImageError) -> dict[str, Any]:
    """Return what can be said of a file that is no image: `kind` may know what it is instead."""
    return {
        "path": path,
        "format": "unknown",
        "kind": error.facts["kind"],
        "arch": None,
        "version": None,
        "entries": [],
        "error": str(error),
    }


def show(value: object) -> object:
    """Return a value as people read it."""
    if isinstance(value, list):
        return " ".join(value)
    return hex(value) if type(value) is int and value > 9 else value
