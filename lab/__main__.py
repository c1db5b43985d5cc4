"""Run a command in a host of the lab: ``python -m lab aarch64 -- python3 -m pyvmm_kvm``."""

import argparse
import os
import signal
import sys
from pathlib import Path

from guest.host import GuestError

from lab import architectures, image
from lab.hosts import Host


def mebibytes(text: str) -> int:
    """Return how many MiB a size is: ``3G``, ``1024M`` or ``1024``."""
    unit = {"G": 1024, "M": 1}.get(text[-1:].upper(), 0)
    return int(text[:-1] if unit else text) * (unit or 1)


def arguments_of(words: list[str]) -> argparse.Namespace:
    """Parse the command line; leaves with status 2 and a message for a wrong one."""
    parser = argparse.ArgumentParser(
        prog="python -m lab",
        usage="python -m lab x86_64|aarch64|riscv64 [options] [-- COMMAND...]",
        description=(
            "Start a host with hardware KVM in an emulator, made of Debian packages, with this checkout's packages "
            "installed, and run a command in it; its status is this one's. Neither root nor KVM is needed for that."
        ),
        epilog=(
            "The first run of each architecture takes about a minute and a half to make its image, which is kept in "
            "~/.cache/pyvmm/lab. The command runs in a copy of this checkout; without one there is a shell."
        ),
    )
    parser.add_argument("architecture", help=", ".join(architectures.ARCHITECTURES))
    parser.add_argument("--cpus", type=int, default=1, metavar="N", help="processors of the host (default: 1)")
    parser.add_argument("--memory", type=mebibytes, default=0, metavar="SIZE", help="memory of the host: 3G, or in MiB")
    parser.add_argument(
        "--share", type=Path, metavar="DIR",
        help="copy this folder to /share there, and back here when the command has ended",
    )  # fmt: skip
    parser.add_argument("--timeout", type=float, default=0, metavar="SECONDS", help="end a command that takes longer")
    parser.add_argument(
        "--disk", action="append", type=Path, default=[], metavar="FILE", help="a raw disk: /dev/vda, ..."
    )
    parser.add_argument("--console", type=Path, metavar="FILE", help="write what the host's own console said there")
    parser.add_argument("--qemu", action="append", default=[], metavar="WORD", help="one more argument for QEMU")
    parser.add_argument("--refresh", action="store_true", help="make the image anew, of today's packages")
    own, command = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    arguments = parser.parse_args(own)
    arguments.command = command
    if arguments.cpus < 1 or arguments.cpus > 8:
        parser.error("--cpus takes 1 to 8")
    if arguments.memory and not 512 <= arguments.memory <= 1 << 20:
        parser.error("--memory takes 512M or more: the host's files live in it")
    for disk in arguments.disk:
        if not disk.is_file():
            parser.error(f"--disk {disk}: there is no such file")
    if arguments.share and not arguments.share.is_dir():
        parser.error(f"--share {arguments.share}: there is no such folder")
    return arguments


def run(arguments: argparse.Namespace) -> int:
    """Start the host, run the command, end the host."""
    architecture = architectures.find(arguments.architecture)
    if arguments.refresh:
        image.forget(architecture)
    with Host(
        architecture,
        cpus=arguments.cpus,
        memory=arguments.memory,
        arguments=arguments.qemu,
        disks=arguments.disk,
        log=arguments.console,
    ) as host:
        if arguments.share:
            host.run(["mkdir", "-p", "/share"], cwd="/", check=True)
            for path in sorted(arguments.share.iterdir()):
                host.put(path, "/share")
        if arguments.timeout:
            signal.alarm(int(arguments.timeout))
        status = host.interact(arguments.command or ["/bin/bash", "-i"])
        signal.alarm(0)
        if arguments.share:
            for name in host.run(["ls", "-A", "/share"], cwd="/", check=True).text.split("\n"):
                if name:
                    host.get(f"/share/{name}", arguments.share)
    return status if status >= 0 else 128 - status


def time_is_up(_number: int, _frame: object) -> None:
    """End the command at its time limit."""
    raise TimeoutError


def main() -> int:
    """Run the command line; returns the exit status."""
    arguments = arguments_of(sys.argv[1:])
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    signal.signal(signal.SIGALRM, time_is_up)
    try:
        return run(arguments)
    except GuestError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except TimeoutError:
        print(f"lab: the command did not end in {arguments.timeout:g} s; the host was ended", file=sys.stderr)
        return 124
    except KeyboardInterrupt:
        print("lab: interrupted; the host was ended", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
