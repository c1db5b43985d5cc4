"""`python -m pyvmm_loader inspect|plan|extract|initramfs`: what an image is, where it would go, what is in it."""

from __future__ import annotations

import argparse
import os
import sys

from pyvmm_loader.commands import extract, initramfs, inspect, plan
from pyvmm_loader.errors import LoaderError


def main(arguments: list[str] | None = None) -> int:
    """Run the command; return the exit status, 1 with one line on stderr for what cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m pyvmm_loader", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    inspect.add_to(commands)
    plan.add_to(commands)
    extract.add_to(commands)
    initramfs.add_to(commands)
    options = parser.parse_args(arguments)
    try:
        text = options.run(options)
        sys.stdout.write(text.encode(errors="backslashreplace").decode() + "\n")
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever reads, such as head, has enough. Python flushes once more at its end, and would complain.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except (LoaderError, ValueError, OSError) as error:
        # a file's name may have anything in it, a line's end as well
        sys.stderr.write(f"pyvmm_loader: {' '.join(str(error).splitlines())}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
