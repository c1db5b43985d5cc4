"""`python -m pyvmm_loader inspect|plan`: what an image is, and where it would go."""

from __future__ import annotations

import argparse
import json
import sys

from . import BootPlan, LoaderError, inspect

UNITS = {"K": 10, "M": 20, "G": 30}


def size(text: str) -> int:
    """Read a size such as 256M."""
    unit = UNITS.get(text[-1:].upper())
    return int(text) if unit is None else int(text[:-1]) << unit


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit status, 1 with one line on stderr for what cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m pyvmm_loader", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    look = commands.add_parser("inspect", help="say what an image is")
    look.add_argument("--json", action="store_true", help="print one JSON object")
    look.add_argument("path")
    plan = commands.add_parser("plan", help="show what would go where in guest memory")
    plan.add_argument("path")
    plan.add_argument("--memory", type=size, default=256 << 20, help="RAM, such as 256M (the default)")
    plan.add_argument("--cmdline", default="console=ttyS0")
    plan.add_argument("--initrd")
    plan.add_argument("--vcpus", type=int, default=1)
    plan.add_argument("--entry", default="auto", choices=["auto", "pvh", "linux64", "linux32"])
    options = parser.parse_args(arguments)
    try:
        if options.command == "plan":
            with BootPlan(
                options.path, options.memory, options.cmdline, options.initrd, options.vcpus, options.entry
            ) as layout:
                text = str(layout)
        else:
            found = inspect(options.path)
            if options.json:
                text = json.dumps(found)
            else:
                rows = [(key, hex(v) if type(v) is int and v > 9 else v) for key, v in found.items()]
                text = "\n".join([f"{key:<16} {' '.join(v) if isinstance(v, list) else v}" for key, v in rows])
    except (LoaderError, ValueError) as error:
        sys.stderr.write(f"pyvmm_loader: {error}\n")
        return 1
    sys.stdout.write(text + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
