"""`python -m pyvmm_loader inspect|plan|extract|initramfs`: what an image is, where it would go, what is in it."""

from __future__ import annotations

import argparse
import json
import sys

from . import LoaderError, inspect
from .commands import extract, initramfs, plan


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit status, 1 with one line on stderr for what cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m pyvmm_loader", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    look = commands.add_parser("inspect", help="say what an image is")
    look.add_argument("--json", action="store_true", help="print one JSON object")
    look.add_argument("path")
    plan.add_to(commands)
    extract.add_to(commands)
    initramfs.add_to(commands)
    options = parser.parse_args(arguments)
    try:
        if options.command != "inspect":
            text = options.run(options)
        else:
            found = inspect(options.path)
            if options.json:
                text = json.dumps(found)
            else:
                rows = [(key, hex(v) if type(v) is int and v > 9 else v) for key, v in found.items()]
                text = "\n".join([f"{key:<16} {' '.join(v) if isinstance(v, list) else v}" for key, v in rows])
    except (LoaderError, ValueError, OSError) as error:
        sys.stderr.write(f"pyvmm_loader: {error}\n")
        return 1
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
