"""The process 1 of a host: it loads what KVM needs, and runs commands for whoever is at the other end of a channel.

The channel is a virtio-serial port. Both directions carry frames: the length of the rest, a kind, the number of a
command, and a payload. A command has its output as it comes, standard error apart, and its status at the end. It needs
nothing but Python.
"""

import ctypes
import fcntl
import json
import os
import pty
import selectors
import shutil
import signal
import struct
import subprocess
import tarfile
import termios
from io import BytesIO
from pathlib import Path
from typing import Any

HEADER = struct.Struct("<IBI")
HELLO, RUN, INPUT, END_OF_INPUT, OUTPUT, ERRORS, STATUS, SIGNAL, SIZE, PUT, GET, DONE, FAILED = range(13)
CHUNK = 1 << 16
# the addresses of QEMU's user network, which has a DHCP server, but this needs no client
NETWORK = (
    "ip addr add 10.0.2.15/24 dev eth0",
    "ip link set eth0 up",
    "ip route add default via 10.0.2.2",
)


def frame(kind: int, number: int, payload: bytes = b"") -> bytes:
    """Return a frame as it goes over the channel."""
    return HEADER.pack(len(payload), kind, number) + payload


class Command:
    """A command that runs, and the descriptors that lead to it."""

    def __init__(self, words: dict[str, Any]) -> None:
        environment = {**os.environ, **words.get("env", {})}
        self.input: int | None
        if words.get("tty"):
            self.input, inner = pty.openpty()
            self.outputs = {self.input: OUTPUT}
            self.process = subprocess.Popen(
                words["command"], cwd=words["cwd"], env=environment, stdin=inner, stdout=inner, stderr=inner,
                start_new_session=True, preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
            )  # fmt: skip
            os.close(inner)
        else:
            read_end, self.input = os.pipe()
            output, inner_output = os.pipe()
            errors, inner_errors = os.pipe()
            self.outputs = {output: OUTPUT, errors: ERRORS}
            try:
                self.process = subprocess.Popen(
                    words["command"], cwd=words["cwd"], env=environment, stdin=read_end, stdout=inner_output,
                    stderr=inner_errors, start_new_session=True,
                )  # fmt: skip
            except OSError:
                for fd in (self.input, output, errors):
                    os.close(fd)
                raise
            finally:
                for fd in (read_end, inner_output, inner_errors):
                    os.close(fd)

    def close_input(self) -> None:
        """Let the command see the end of its input."""
        if self.input is not None and self.input not in self.outputs:
            os.close(self.input)
            self.input = None


class Agent:
    """Serves the channel; ends when it does."""

    def __init__(self, channel: int) -> None:
        self.channel = channel
        self.selector = selectors.DefaultSelector()
        self.commands: dict[int, Command] = {}
        self.received = bytearray()

    def send(self, kind: int, number: int, payload: bytes = b"") -> None:
        """Write a frame; the port may take it in parts."""
        rest = memoryview(frame(kind, number, payload))
        while rest:
            rest = rest[os.write(self.channel, rest[:CHUNK]) :]

    def serve(self) -> None:
        """Serve until the other side goes away."""
        self.selector.register(self.channel, selectors.EVENT_READ, None)
        release = os.uname()
        self.send(HELLO, 0, json.dumps({"release": release.release, "machine": release.machine}).encode())
        while True:
            for key, _ in self.selector.select(0.5 if self.commands else None):
                if key.data is None:
                    data = os.read(self.channel, CHUNK)
                    self.received += data
                    self.take()
                else:
                    self.forward(key.fd, *key.data)
            self.reap()

    def take(self) -> None:
        """Act on each whole frame."""
        while len(self.received) >= HEADER.size:
            length, kind, number = HEADER.unpack_from(self.received)
            if len(self.received) < HEADER.size + length:
                return
            payload = bytes(self.received[HEADER.size : HEADER.size + length])
            del self.received[: HEADER.size + length]
            try:
                self.act(kind, number, payload)
            except Exception as error:  # noqa: BLE001 - process 1 has to live, and the other side is told
                self.send(FAILED, number, f"{type(error).__name__}: {error}".encode())

    def act(self, kind: int, number: int, payload: bytes) -> None:
        """Do what one frame asks for."""
        command = self.commands.get(number)
        if kind == RUN:
            self.commands[number] = command = Command(json.loads(payload))
            for fd, stream in command.outputs.items():
                self.selector.register(fd, selectors.EVENT_READ, (number, stream))
        elif kind == PUT:
            where, _, archive = payload.partition(b"\0")
            with tarfile.open(fileobj=BytesIO(archive)) as tar:
                tar.extractall(where.decode())
            self.send(DONE, number)
        elif kind == GET:
            packed = BytesIO()
            path = Path(payload.decode())
            with tarfile.open(fileobj=packed, mode="w") as tar:
                tar.add(path, path.name)
            self.send(DONE, number, packed.getvalue())
        elif command is None:
            pass  # it has ended meanwhile
        elif kind == INPUT and command.input is not None:
            try:
                os.write(command.input, payload)
            except OSError:
                command.close_input()  # it reads no more
        elif kind == END_OF_INPUT:
            command.close_input()
        elif kind == SIGNAL:
            os.killpg(command.process.pid, int(payload))
        elif kind == SIZE and command.input is not None:
            rows, columns = json.loads(payload)
            fcntl.ioctl(command.input, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    def forward(self, fd: int, number: int, stream: int) -> None:
        """Pass a command's output on; at its end, forget the descriptor."""
        try:
            data = os.read(fd, CHUNK)
        except OSError:  # a terminal without anybody at the other end
            data = b""
        if data:
            self.send(stream, number, data)
            return
        self.selector.unregister(fd)
        command = self.commands[number]
        del command.outputs[fd]
        if fd == command.input:
            command.input = None
        os.close(fd)

    def reap(self) -> None:
        """Report commands that have ended with all of their output passed on; collect orphans."""
        for number, command in list(self.commands.items()):
            status = command.process.poll()
            if status is None:
                continue
            # what the command has left running may hold its output open for ever
            for fd in list(command.outputs):
                os.set_blocking(fd, False)
                while fd in command.outputs:
                    try:
                        data = os.read(fd, CHUNK)
                    except BlockingIOError:
                        data = b""
                    except OSError:
                        data = b""
                    if not data:
                        break
                    self.send(command.outputs[fd], number, data)
                self.selector.unregister(fd)
                del command.outputs[fd]
                if fd == command.input:
                    command.input = None
                os.close(fd)
            command.close_input()
            del self.commands[number]
            self.send(STATUS, number, str(status).encode())


def load_modules(listing: Path) -> None:
    """Load kernel modules, in the order of a list; one that does not go says why on the console."""
    libc = ctypes.CDLL(None, use_errno=True)
    for path in listing.read_text().split():
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        finit_module = {"x86_64": 313}.get(os.uname().machine, 273)
        if libc.syscall(finit_module, fd, b"", 0):
            print(f"lab: {path}: {os.strerror(ctypes.get_errno())}", flush=True)
        os.close(fd)


def port(name: str) -> int:
    """Open the virtio-serial port of a name."""
    for folder in Path("/sys/class/virtio-ports").iterdir():
        if (folder / "name").read_text().strip() == name:
            return os.open(f"/dev/{folder.name}", os.O_RDWR | os.O_CLOEXEC)
    raise SystemExit(f"lab: no virtio-serial port {name}")


def main() -> None:
    """Be process 1."""
    load_modules(Path("/lab/modules"))
    for words in NETWORK:
        subprocess.run(words.split(), check=False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    shutil.copyfile("/lab/resolv.conf", "/etc/resolv.conf")
    os.chdir("/root")
    Agent(port("lab")).serve()


if __name__ == "__main__":
    main()
