"""The example's console under a pseudo-terminal: input reaches the guest, and the terminal comes back as it was."""

import os
import pty
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator

import pytest
from tests.vmm.conftest import PATIENCE, VMM, DemoGuest

FOREVER = bytes.fromhex("ebfe")  # jmp to itself
COLUMNS_FOREVER = bytes.fromhex("baf8030000 a0000100d0 ee ebf8")
"""mov edx, 0x3f8; again: mov al, [0xd0000100]; out dx, al; jmp again: the virtio console's columns as a character."""


class Session:
    """The example on a terminal of its own."""

    def __init__(self, *options: str) -> None:
        self.fd, self.terminal = pty.openpty()
        self.resize("P")
        self.before = termios.tcgetattr(self.terminal)
        self.said = b""
        self.process = subprocess.Popen(
            [*VMM, *options], stdin=self.terminal, stdout=self.terminal, stderr=self.terminal
        )

    def expect(self, text: bytes) -> None:
        """Read until the guest or the VMM has said something."""
        deadline = time.monotonic() + PATIENCE
        while text not in self.said:
            assert time.monotonic() < deadline, self.said
            self.said += os.read(self.fd, 4096)
        self.said = self.said.partition(text)[2]

    def resize(self, columns: str) -> None:
        """Make it as wide as a character's number."""
        termios.tcsetwinsize(self.terminal, (25, ord(columns)))

    def is_raw(self) -> bool:
        flags: int = termios.tcgetattr(self.terminal)[3]
        return not flags & termios.ECHO

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.fd)
        os.close(self.terminal)


@pytest.fixture
def session() -> Iterator[Callable[..., Session]]:
    sessions: list[Session] = []

    def start(*options: str) -> Session:
        sessions.append(Session(*options))
        return sessions[-1]

    yield start
    for one in sessions:
        one.close()


@pytest.mark.guest
def test_what_is_typed_comes_back(demo: DemoGuest, session: Callable[..., Session]) -> None:
    console = session(*demo.options("wait=100"))
    console.expect(b"guest: type a line")
    os.write(console.fd, b"hello from outside\r")
    console.expect(b"echo: hello from outside")
    # more than the receiver holds at once
    os.write(console.fd, b"x" * 1000 + b"\r")
    console.expect(b"echo: " + b"x" * 1000)
    os.write(console.fd, b"poweroff\r")
    assert console.process.wait(PATIENCE) == 0
    assert termios.tcgetattr(console.terminal) == console.before


@pytest.mark.kvm
def test_ctrl_a_x_leaves(program: Callable[[bytes], str], session: Callable[..., Session]) -> None:
    console = session("--kernel", program(FOREVER))
    console.expect(b"Ctrl-A x: leave")
    assert console.is_raw()
    os.write(console.fd, b"\x01h")
    console.expect(b"Ctrl-A x: leave")
    os.write(console.fd, b"\x01x")
    assert console.process.wait(PATIENCE) == 0
    assert termios.tcgetattr(console.terminal) == console.before


@pytest.mark.kvm
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_restore_the_terminal(
    program: Callable[[bytes], str], session: Callable[..., Session], number: signal.Signals
) -> None:
    console = session("--kernel", program(FOREVER))
    console.expect(b"Ctrl-A x: leave")
    console.process.send_signal(number)
    assert console.process.wait(PATIENCE) == 128 + number, os.read(console.fd, 8192).decode()
    assert termios.tcgetattr(console.terminal) == console.before


@pytest.mark.kvm
def test_the_virtio_console_is_as_wide_as_the_terminal(
    program: Callable[[bytes], str], session: Callable[..., Session]
) -> None:
    console = session("--kernel", program(COLUMNS_FOREVER), "--console")
    console.expect(b"PPP")
    console.resize("c")
    # the kernel sends it to a terminal's foreground processes; this one is nobody's
    console.process.send_signal(signal.SIGWINCH)
    console.expect(b"ccc")
