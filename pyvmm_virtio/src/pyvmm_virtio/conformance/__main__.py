"""``python -m pyvmm_virtio.conformance``: print every clause that concerns a device, and what comes of it."""

from __future__ import annotations

import argparse
import logging
import sys

from pyvmm_virtio.conformance.grading import FAIL, grade
from pyvmm_virtio.errors import VirtioUsageError
from pyvmm_virtio.samples import NAMES


def main() -> int:
    """Grade what the command line names; returns 1 where something failed, 2 for no such device, else 0."""
    parser = argparse.ArgumentParser(
        prog="python -m pyvmm_virtio.conformance",
        description="Every MUST and MUST NOT of VIRTIO 1.3 that concerns a device: tried, tested, or why not.",
        epilog="A class is made without arguments. Example: python -m pyvmm_virtio.conformance lesson:MyDevice",
    )
    parser.add_argument("device", help=f"{', '.join(NAMES)}, or module:Class (or FILE.py:Class) of your own")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--failed", action="store_true", help="print only what failed")
    arguments = parser.parse_args()
    logging.getLogger("pyvmm_virtio").setLevel(logging.CRITICAL)
    try:
        results = grade(arguments.device)
    except VirtioUsageError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    failed = [result for result in results if result.verdict == FAIL]
    shown = failed if arguments.failed else results
    if arguments.json:
        import json

        rows = [
            {"section": each.clause.section, "clause": each.clause.text, "verdict": each.verdict, "by": each.details}
            for each in shown
        ]
        sys.stdout.write(json.dumps(rows, indent=1) + "\n")
    else:
        for each in shown:
            sys.stdout.write(f"{each.verdict:7}{each.clause.section:12}{each.clause.text}\n{'':19}{each.details}\n")
        counts = {
            verdict: sum(each.verdict == verdict for each in results) for verdict in ("ok", "tested", "n/a", FAIL)
        }
        sys.stdout.write(", ".join(f"{count} {verdict}" for verdict, count in counts.items()) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
