"""What the guests that use virtio devices need around them: images, a network namespace with servers, the VMM."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import threading
import time
import zlib
from typing import NamedTuple

from guest import initramfs, kernel
from guest.host import install
from tests.vmm.conftest import ROOT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VMM = [sys.executable, "-m", "tests.vmm.changing_vmm"]
PATIENCE = 900
MIB = 1 << 20
CHUNK = 1 << 16
"""How much the guest's init writes at once."""
PINGED = "198.51.100.1"


def pattern(size: int, seed: int) -> bytes:
    """The bytes that the guest's init makes up."""
    out = bytearray(size)
    for at in range(size):
        seed = (seed * 1664525 + 1013904223) & 0xFFFFFFFF
        out[at] = seed >> 24
    return bytes(out)


def make_ext2(path: Path, content: bytes) -> None:
    """An ext2 image of 8 MiB with one file, `input`."""
    folder = path.with_suffix(".files")
    folder.mkdir()
    (folder / "input").write_bytes(content)
    path.write_bytes(b"")
    os.truncate(path, 8 * MIB)
    subprocess.run(["mke2fs", "-q", "-t", "ext2", "-b", "4096", "-d", folder, path], check=True)


def from_ext2(path: Path, name: str) -> bytes:
    """A file's content, read by e2fsprogs."""
    return subprocess.run(["debugfs", "-R", f"cat {name}", path], check=True, capture_output=True).stdout


def is_clean(path: Path) -> bool:
    """Whether e2fsck finds nothing to say of the file system."""
    return subprocess.run(["e2fsck", "-n", "-f", path], check=False, capture_output=True).returncode == 0


class Guest(NamedTuple):
    """What a guest said, what was typed to it and what the VMM said."""

    output: str
    errors: str
    status: int

    def said(self, expression: str) -> re.Match[str]:
        """Find something in what it said."""
        found = re.search(expression, self.output)
        assert found, f"{expression!r} is not in\n{self.output}\n{self.errors}"
        return found


def boot(words: str, options: list[str], *, prefix: list[str] | None = None, typed: str = "", when: str = "") -> Guest:
    """Boot a guest whose kernel and init are told these words; once it has said `when`, `typed` is typed."""
    cmdline = f"console=ttyS0 panic=-1 reboot=k quiet {words}"
    command = [*(prefix or []), *VMM, "--kernel", str(kernel.build("full").vmlinux)]
    command += ["--initrd", str(initramfs.virtio()), "--cmdline", cmdline, *options]
    process = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT / "examples")},
    )
    output: list[str] = []

    def listen() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            output.append(line)
            if typed and when in line and process.stdin is not None:
                process.stdin.write(typed)
                process.stdin.flush()

    listener = threading.Thread(target=listen)
    listener.start()
    deadline = time.monotonic() + PATIENCE
    try:
        while listener.is_alive() and time.monotonic() < deadline:
            listener.join(1)
    finally:
        process.kill() if listener.is_alive() else process.wait()
        listener.join()
        assert process.stderr is not None
        assert process.stdin is not None
        errors = process.stderr.read()
        with contextlib.suppress(BrokenPipeError):
            process.stdin.close()
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()
        process.wait()
    return Guest("".join(output), errors, process.returncode)


class Client(threading.Thread):
    """Somebody at a port's socket, who answers a line of the guest by one of his own."""

    def __init__(self, path: Path, said: bytes) -> None:
        super().__init__(daemon=True)
        self.path, self.said = path, said
        self.heard = b""
        self.start()

    def run(self) -> None:
        deadline = time.monotonic() + PATIENCE
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as line:
            while line.connect_ex(str(self.path)) and time.monotonic() < deadline:
                time.sleep(0.1)  # until the VMM is there
            while data := line.recv(4096):
                self.heard += data
                if self.heard.endswith(b"hello from the guest\n"):
                    line.sendall(self.said)


def captured(path: Path) -> Iterator[bytes]:
    """The frames of a capture."""
    with path.open("rb") as file:
        file.seek(24)
        while header := file.read(16):
            yield file.read(int.from_bytes(header[8:12], "little"))


class Network(NamedTuple):
    """A network namespace with an HTTP server, and what it was sent."""

    prefix: list[str]
    words: str
    received: list[int]
    """Checksums of what guests sent."""
    content: bytes


SERVER = """
import http.server, sys, zlib
content = open(sys.argv[2], "rb").read()
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, body):
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.answer(content)
    def do_PUT(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        print(len(body), zlib.crc32(body), flush=True)
        self.answer(b"thanks")
    def log_message(self, *arguments):
        pass
http.server.ThreadingHTTPServer(("0.0.0.0", int(sys.argv[1])), Handler).serve_forever()
"""


@contextlib.contextmanager
def namespace(kind: str, folder: Path, size: int, queues: int = 1) -> Iterator[Network]:
    """A namespace in which a tap interface ("tap") or passt ("user") reaches an HTTP server with `size` bytes."""
    install(["iproute2", "dnsmasq-base", "passt"], "which make networks for guests")
    name = f"pyvmm{os.getpid()}"
    inside = ["ip", "netns", "exec", name]
    content = os.urandom(size)
    (folder / "data").write_bytes(content)
    subprocess.run(["ip", "netns", "add", name], check=True)
    processes: list[subprocess.Popen[str]] = []
    try:
        # an address that is neither the guest's nor the gateway's, which passt would take for something else
        setup = (
            f"ip link set lo up; ip addr add {PINGED}/32 dev lo; sysctl -qw net.ipv4.ping_group_range='0 2147483647'; "
        )
        if kind == "tap":
            address = "10.77.0.1"
            several = "multi_queue" if queues > 1 else ""
            setup += f"ip tuntap add tap0 mode tap {several}; ip addr add 10.77.0.1/24 dev tap0; ip link set tap0 up"
        else:
            # passt gives the guest this interface's address, and takes the gateway's for the host itself
            address = "192.0.2.1"
            setup += "ip tuntap add wan mode tap; ip addr add 192.0.2.2/24 dev wan; ip link set wan up; "
            setup += "ip route add default via 192.0.2.1"
        subprocess.run([*inside, "sh", "-ec", setup], check=True)
        if kind == "tap":
            dhcp = "dnsmasq --no-daemon --port=0 --interface=tap0 --bind-interfaces --conf-file=/dev/null".split()
            dhcp += ["--dhcp-range=10.77.0.10,10.77.0.20", f"--dhcp-leasefile={folder}/leases"]
            processes.append(subprocess.Popen([*inside, *dhcp], stderr=subprocess.DEVNULL, text=True))
        server = [*inside, sys.executable, "-c", SERVER, "8000", str(folder / "data")]
        processes.append(subprocess.Popen(server, stdout=subprocess.PIPE, text=True))
        received: list[int] = []
        network = Network(inside, f"ip=dhcp ping={PINGED} server={address}:8000 bytes={size}", received, content)
        yield network
    finally:
        for process in reversed(processes):
            process.terminate()
            output, _ = process.communicate()
            for line in (output or "").splitlines():
                received.append(int(line.split()[1]))
        subprocess.run(["ip", "netns", "del", name], check=True)


def crc(data: bytes) -> str:
    """A checksum as the guest prints it."""
    return f"{zlib.crc32(data):08x}"
