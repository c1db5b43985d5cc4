"""A host that runs: commands in it, files into it and out of it."""

import contextlib
import io
import json
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Self

from guest.host import GuestError, install, say

from lab import agent, architectures, image
from lab.architectures import Architecture
from lab.errors import LabError

BOOT_SECONDS = 240
CHUNK = 1 << 16


class Completed:
    """What became of a command: `status` (negative: the signal that ended it), and `stdout` and `stderr` where kept."""

    __slots__ = ("command", "status", "stderr", "stdout")

    def __init__(self, command: Sequence[str], status: int, stdout: bytes, stderr: bytes) -> None:
        self.command = command
        self.status = status
        self.stdout = stdout
        self.stderr = stderr

    @property
    def text(self) -> str:
        """Standard output as text."""
        return self.stdout.decode(errors="replace")

    def __repr__(self) -> str:
        return f"<Completed {' '.join(self.command)}: status {self.status}>"


class Host:
    """A host of the lab, made and started by the constructor, ended by `close` or the end of a ``with``.

    Args:
        architecture: ``x86_64``, ``aarch64`` or ``riscv64``.
        cpus: how many processors it has.
        memory: in MiB; the architecture knows how much is needed.
        arguments: more of QEMU's, such as disks.
        words: more of its kernel's command line.
        disks: files that are its disks, raw, the first of which it calls /dev/vda.
        log: a file for what its console said, written when it is closed.

    Raises:
        LabError: it cannot be made, or does not come up.
    """

    def __init__(
        self,
        architecture: str | Architecture,
        *,
        cpus: int = 1,
        memory: int = 0,
        arguments: Sequence[str] = (),
        words: Sequence[str] = (),
        disks: Sequence[Path] = (),
        log: Path | None = None,
    ) -> None:
        if isinstance(architecture, str):
            architecture = architectures.find(architecture)
        self.architecture = architecture
        self.release = ""
        self.log = log
        self._number = 0
        self._received = bytearray()
        self._folder = tempfile.TemporaryDirectory(prefix="pyvmm-lab-")
        self._process: subprocess.Popen[bytes] | None = None
        self._channel: socket.socket | None = None
        try:
            if shutil.which(architecture.machine[0]) is None:
                install_qemu(architecture)
            base = image.base(architecture)
            folder = Path(self._folder.name)
            image.write_initrd(architecture, base, folder / "initrd")
            drives = [f"file={disk},format=raw,if=virtio,cache=unsafe" for disk in disks]
            more = [*arguments, *(word for drive in drives for word in ("-drive", drive))]
            self._start(base / "vmlinuz", cpus, memory or architecture.memory, more, words)
        except BaseException:
            self.close()
            raise

    def _start(self, kernel: Path, cpus: int, memory: int, arguments: Sequence[str], words: Sequence[str]) -> None:
        folder = Path(self._folder.name)
        architecture = self.architecture
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(folder / "channel"))
        listener.listen(1)
        line = [f"console={architecture.console}", "panic=-1", "mitigations=off", "quiet", *architecture.words, *words]
        command = [
            *architecture.machine, "-accel", "tcg,thread=multi", "-smp", str(cpus), "-m", f"{memory}M",
            "-kernel", str(kernel), "-initrd", str(folder / "initrd"), "-append", " ".join(line),
            "-display", "none", "-no-reboot", "-monitor", "none", "-serial", f"file:{folder / 'console'}",
            "-device", "virtio-serial-pci", "-chardev", f"socket,id=lab,path={folder / 'channel'}",
            "-device", "virtserialport,chardev=lab,name=lab",
            "-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile=",
            "-device", "virtio-rng-pci", *arguments,
        ]  # fmt: skip
        # whatever ends this process ends QEMU too
        with (folder / "qemu.log").open("wb") as log:
            self._process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                start_new_session=True,
            )  # fmt: skip
        start = time.monotonic()
        say(f"lab: starting a {architecture.name} host (about 15 s) ...")
        with listener:
            listener.settimeout(20)
            try:
                self._channel, _ = listener.accept()
            except TimeoutError:
                raise LabError(f"QEMU did not start: {self._reason()}") from None
        self._channel.settimeout(1)
        deadline = start + BOOT_SECONDS
        kind, _, payload = self._receive(deadline, "it did not come up")
        if kind != agent.HELLO:
            raise LabError(f"the host's agent said {kind} first")
        self.release = json.loads(payload)["release"]
        say(f"  up with Linux {self.release} in {time.monotonic() - start:.0f} s")

    @property
    def console(self) -> str:
        """What the host has said on its serial line."""
        path = Path(self._folder.name) / "console"
        return path.read_text(errors="replace") if path.exists() else ""

    def _reason(self) -> str:
        """Return, in a line, the last that is known of a host that is gone."""
        lines = (Path(self._folder.name) / "qemu.log").read_text(errors="replace").splitlines()
        log = [line for line in lines if line.strip() and " warning: " not in line]
        said = [line.strip() for line in self.console.splitlines() if line.strip()]
        panics = [line for line in said if "Kernel panic" in line]
        if log:
            return f"QEMU said: {log[-1]}"
        return f"its console said: {(panics or said)[-1]}" if said else "its console is empty"

    def _receive(self, deadline: float, what: str) -> tuple[int, int, bytes]:
        """Return the next frame.

        Raises:
            LabError: the host is gone, or the time is up.
        """
        while True:
            if len(self._received) >= agent.HEADER.size:
                length, kind, number = agent.HEADER.unpack_from(self._received)
                end = agent.HEADER.size + length
                if len(self._received) >= end:
                    payload = bytes(self._received[agent.HEADER.size : end])
                    del self._received[:end]
                    return kind, number, payload
            assert self._channel is not None
            try:
                data = self._channel.recv(CHUNK)
            except TimeoutError:
                if time.monotonic() > deadline:
                    raise LabError(f"{what} in time; {self._reason()}") from None
                continue
            except OSError:
                data = b""
            if not data:
                raise LabError(f"the {self.architecture.name} host is gone: {self._reason()}")
            self._received += data

    def _send(self, kind: int, number: int, payload: bytes = b"") -> None:
        if self._channel is None:
            raise LabError("this host is closed")
        self._channel.settimeout(60)
        try:
            self._channel.sendall(agent.frame(kind, number, payload))
        except OSError as error:
            raise LabError(f"the {self.architecture.name} host is gone ({error}): {self._reason()}") from error
        finally:
            self._channel.settimeout(1)

    def run(
        self,
        command: Sequence[str],
        *,
        cwd: str = "/root/pyvmm",
        env: Mapping[str, str] | None = None,
        input: bytes = b"",  # noqa: A002 - subprocess's name
        timeout: float = 3600,
        check: bool = False,
        on_output: Callable[[bytes], object] | None = None,
        on_errors: Callable[[bytes], object] | None = None,
    ) -> Completed:
        """Run a command to its end and return its status and what it said.

        Args:
            command: its words; no shell looks at them.
            cwd: the folder it runs in; the checkout by default.
            env: what is added to its environment.
            input: what it reads from standard input.
            timeout: in seconds; then it is killed.
            check: raise for another status than 0.
            on_output: called with each piece of its output as it comes; without it the pieces are kept.
            on_errors: likewise of its standard error.

        Raises:
            LabError: it was not found, took too long, or, with `check`, ended with another status; the host is gone.
        """
        number = self._begin(command, cwd, env, tty=False)
        if input:
            self._send(agent.INPUT, number, input)
        self._send(agent.END_OF_INPUT, number)
        kept = {agent.OUTPUT: bytearray(), agent.ERRORS: bytearray()}
        sinks = {
            agent.OUTPUT: on_output or kept[agent.OUTPUT].extend,
            agent.ERRORS: on_errors or kept[agent.ERRORS].extend,
        }
        deadline = time.monotonic() + timeout
        while True:
            kind, about, payload = self._next(number, deadline, command)
            if about != number:
                continue  # the rest of a command that was given up
            if kind in sinks:
                sinks[kind](payload)
            elif kind == agent.FAILED:
                raise LabError(f"{command[0]}: {payload.decode()}")
            elif kind == agent.STATUS:
                break
        done = Completed(command, int(payload), bytes(kept[agent.OUTPUT]), bytes(kept[agent.ERRORS]))
        if check and done.status:
            said = (done.stderr or done.stdout).decode(errors="replace").strip().splitlines()[-20:]
            raise LabError(f"'{' '.join(command)}' ended with status {done.status}:\n" + "\n".join(said))
        return done

    def _begin(self, command: Sequence[str], cwd: str, env: Mapping[str, str] | None, *, tty: bool) -> int:
        self._number += 1
        words = {"command": list(command), "cwd": cwd, "env": dict(env or {}), "tty": tty}
        self._send(agent.RUN, self._number, json.dumps(words).encode())
        return self._number

    def _next(self, number: int, deadline: float, command: Sequence[str]) -> tuple[int, int, bytes]:
        try:
            return self._receive(deadline, f"'{' '.join(command)}' did not end")
        except BaseException:
            with contextlib.suppress(LabError):  # the host itself may be what is gone
                self._send(agent.SIGNAL, number, str(int(signal.SIGKILL)).encode())
            raise

    def interact(self, command: Sequence[str], *, cwd: str = "/root/pyvmm") -> int:
        """Run a command with this process's terminal, and return its status.

        Standard input is forwarded as it comes; a terminal is made raw meanwhile and restored, whatever happens.
        """
        tty = sys.stdin.isatty() and sys.stdout.isatty()
        size = os.get_terminal_size() if tty else os.terminal_size((80, 24))
        environment = {"TERM": os.environ.get("TERM", "dumb")} if tty else {}
        number = self._begin(command, cwd, environment, tty=tty)
        if tty:
            self._send(agent.SIZE, number, json.dumps([size.lines, size.columns]).encode())
        with raw_terminal(sys.stdin.fileno()) if tty else contextlib.nullcontext():
            return self._forward(number)

    def _forward(self, number: int) -> int:
        assert self._channel is not None
        outputs: dict[int, IO[bytes]] = {agent.OUTPUT: sys.stdout.buffer, agent.ERRORS: sys.stderr.buffer}
        with selectors.DefaultSelector() as selector:
            selector.register(self._channel, selectors.EVENT_READ)
            with contextlib.suppress(PermissionError):  # a file is always ready, and epoll takes none
                selector.register(sys.stdin.fileno(), selectors.EVENT_READ)
            if len(selector.get_map()) == 1:
                self._send(agent.INPUT, number, sys.stdin.buffer.read())
                self._send(agent.END_OF_INPUT, number)
            while True:
                ready = [] if self._has_frame() else [key.fd for key, _ in selector.select()]
                if sys.stdin.fileno() in ready:
                    data = os.read(sys.stdin.fileno(), CHUNK)
                    self._send(agent.INPUT if data else agent.END_OF_INPUT, number, data)
                    if not data:
                        selector.unregister(sys.stdin.fileno())
                    if self._channel.fileno() not in ready:
                        continue
                kind, about, payload = self._receive(time.monotonic() + 3600, "the command did not end")
                if about == number and kind in outputs:
                    outputs[kind].write(payload)
                    outputs[kind].flush()
                elif kind == agent.FAILED:
                    raise LabError(payload.decode())
                elif about == number and kind == agent.STATUS:
                    return int(payload)

    def _has_frame(self) -> bool:
        if len(self._received) < agent.HEADER.size:
            return False
        length = int(agent.HEADER.unpack_from(self._received)[0])
        return len(self._received) >= agent.HEADER.size + length

    def put(self, source: str | Path, target: str) -> None:
        """Copy a file or a folder of this machine into a folder of the host's, which is made."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(source, Path(source).resolve().name)
        self._number += 1
        self._send(agent.PUT, self._number, target.encode() + b"\0" + archive.getvalue())
        self._answer(f"copying {source}")

    def get(self, source: str, target: str | Path) -> None:
        """Copy a file or a folder of the host's into a folder of this machine."""
        self._number += 1
        self._send(agent.GET, self._number, source.encode())
        with tarfile.open(fileobj=io.BytesIO(self._answer(f"copying {source}"))) as tar:
            tar.extractall(target, filter="data")

    def _answer(self, what: str) -> bytes:
        deadline = time.monotonic() + 600
        while True:
            kind, number, payload = self._receive(deadline, f"{what} did not end")
            if number == self._number:
                break
        if kind == agent.FAILED:
            raise LabError(f"{what}: {payload.decode()}")
        return payload

    def close(self) -> None:
        """End the host; idempotent."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
        if self.log is not None and self._folder is not None:
            with contextlib.suppress(OSError):  # the console was there to help, and the run is over
                self.log.write_text(self.console)
        if self._channel is not None:
            self._channel.close()
            self._channel = None
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "closed" if self._channel is None else f"Linux {self.release}"
        return f"<Host {self.architecture.name} {state}>"


def install_qemu(architecture: Architecture) -> None:
    """Install the emulator of an architecture.

    Raises:
        LabError: apt-get, sudo or the network said no.
    """
    try:
        install(architecture.qemu, f"which has QEMU for {architecture.name}")
    except GuestError as error:
        packages = " ".join(architecture.qemu)
        cause = str(error).splitlines()[-1]
        raise LabError(f"no {architecture.machine[0]}: as root, 'apt-get install {packages}' ({cause})") from error


@contextlib.contextmanager
def raw_terminal(fd: int) -> Iterator[None]:
    """Pass every key on; the terminal is as it was afterwards."""
    import termios
    import tty

    before = termios.tcgetattr(fd)
    tty.setraw(fd)
    try:
        yield
    finally:
        termios.tcsetattr(fd, termios.TCSADRAIN, before)


def host(architecture: str, *, cpus: int = 1, memory: int = 0, disks: Sequence[Path] = ()) -> Host:
    """Start a host, for a ``with``; see `Host`."""
    return Host(architecture, cpus=cpus, memory=memory, disks=disks)
