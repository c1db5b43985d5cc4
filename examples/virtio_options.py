"""The options of the example that ask for virtio devices; what they mean is in `virtio_devices.py`."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse
    from typing import Any


def virtio_wanted(asked: argparse.Namespace) -> bool:
    """Whether the command line asks for any of this."""
    return bool(asked.disk or asked.net or asked.console or asked.port or asked.rng)


def disk(text: str) -> argparse.Namespace:
    """Read PATH[,ro][,format=FORMAT][,queues=N][,serial=TEXT]; a comma in the path is one that no option follows."""
    return _options(text, "path", {"format": "raw", "serial": ""})


def net(text: str) -> argparse.Namespace:
    """Read user or tap=NAME, each with [,mac=MAC][,queues=N][,capture=FILE]."""
    import argparse

    asked = _options(text, "kind", {"mac": "", "capture": ""})
    kind, _, asked.tap = asked.kind.partition("=")
    if (kind, bool(asked.tap)) not in (("user", False), ("tap", True)):
        raise argparse.ArgumentTypeError(f"{asked.kind!r} is no network: give user, or tap=NAME")
    asked.name = f"tap={asked.tap}" if asked.tap else kind
    asked.kind = kind
    return asked


def port(text: str) -> argparse.Namespace:
    """Read NAME=SOCKET."""
    import argparse

    name, _, path = text.partition("=")
    if not name or not path:
        raise argparse.ArgumentTypeError(f"{text!r} is no port: give NAME=SOCKET, as in lesson=/tmp/lesson.socket")
    return argparse.Namespace(name=name, path=path)


def _options(text: str, first: str, defaults: dict[str, str]) -> argparse.Namespace:
    import argparse

    values: dict[str, Any] = {**defaults, "ro": False, "queues": 0}
    rest, comma, last = text.rpartition(",")
    while comma:
        key, equals, value = last.partition("=")
        if key == "ro" and not equals:
            values["ro"] = True
        elif key == "queues" and value.isascii() and value.isdigit() and 1 <= int(value) <= 256:
            values["queues"] = int(value)
        elif key in defaults and value:
            values[key] = value
        else:
            break
        text = rest
        rest, comma, last = text.rpartition(",")
    if not text:
        raise argparse.ArgumentTypeError(f"there is no {first}")
    return argparse.Namespace(**{first: text}, **values)


def add_virtio_options(parser: argparse.ArgumentParser) -> None:
    """Add the options to a command line."""
    add = parser.add_argument_group("virtio devices (--disk, --net and --port may be given several times)").add_argument
    formats = "raw unless format=qcow2, vmdk, vhdx or another that QEMU knows; or nbd:unix:SOCKET, nbd://HOST/EXPORT"
    formats += "; also takes ,queues=N and ,serial=TEXT"
    add(
        "--disk",
        type=disk,
        action="append",
        default=[],
        metavar="PATH[,ro][,format=FORMAT]",
        help=f"an image, {formats}",
    )
    networks = "an interface of the host, or passt's network, which needs no privilege"
    networks += "; also takes ,mac=MAC, ,capture=FILE for Wireshark and, with tap, ,queues=N"
    add("--net", type=net, action="append", default=[], metavar="tap=NAME|user", help=networks)
    add("--console", action="store_true", help="a console at this terminal for console=hvc0; what is typed goes there")
    programs = "a port for the guest's programs (/sys/class/virtio-ports/*/name); SOCKET is its other end, on this host"
    add("--port", type=port, action="append", default=[], metavar="NAME=SOCKET", help=programs)
    add("--rng", action="store_true", help="a source of random numbers")
    add("--transport", choices=("mmio", "pci"), default="mmio", help="how the guest reaches them (%(default)s)")
    add("--ring", choices=("split", "packed"), default="packed", help="the newest format to offer (%(default)s)")
