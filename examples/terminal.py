"""The two ends of a serial line: what the guest prints, and what the person at the terminal types.

`Console` prints and watches for the line that says the kernel panicked. `Terminal` puts the terminal into raw mode,
takes the Ctrl-A commands out of what is typed, and brings the terminal back as it was, whatever happens.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from pyvmm_device import EventLoop, OutputBuffer, Pl011, Serial
    from virtio_devices import TerminalPort

CTRL_A = 0x01
HELP = b"\r\n[Ctrl-A x: leave   Ctrl-A h: this help   Ctrl-A b: break   Ctrl-A Ctrl-A: a Ctrl-A for the guest]\r\n"


class Console:
    """The guest's side of the serial line: bytes out, and an eye on what the kernel says when it panics."""

    def __init__(self, output: OutputBuffer | None = None) -> None:
        self.output = output
        self.panic = ""
        self.spins = False
        self.line = bytearray()

    def write(self, data: bytes) -> None:
        """Print what the guest transmits: its processor does not wait for a terminal that stands still."""
        if self.output is not None:
            self.output.write(data)
        self.line += data
        if data == b"\n" or len(self.line) > 512:
            self.read_line(bytes(self.line))
            self.line.clear()

    def read_line(self, line: bytes) -> None:
        """Notice a panic: there is no other way to tell its reset from a reboot without a device made for it."""
        before, found, message = line.partition(b"Kernel panic - not syncing: ")
        if found and before.strip().endswith((b"]", b"end")) | (not before.strip()):
            self.panic = self.panic or message.decode(errors="replace").strip(" \r\n-[]")
            # printed last by a kernel that was not told to reboot
            self.spins = b"end Kernel panic" in line


class Terminal:
    """The person's side of the serial line: raw mode, Ctrl-A commands, and the terminal back as it was."""

    def __init__(self, loop: EventLoop, serial: Serial | Pl011 | TerminalPort, leave: Callable[[], object]) -> None:
        self.loop = loop
        self.serial = serial
        self.leave = leave
        self.pending = bytearray()  # typed, and not yet taken by the guest
        self.escaped = False
        self.saved: list[Any] | None = None
        self.waitable = True
        serial.on_room = self.on_room

    def __enter__(self) -> Terminal:
        if os.isatty(0):
            import termios
            import tty

            self.saved = termios.tcgetattr(0)
            tty.setraw(0)
            os.write(2, HELP)
        try:
            self.loop.add_reader(0, self.on_input)
        except OSError:  # a regular file or /dev/null cannot be waited for, and need not be
            self.waitable = False
            self.loop.call_soon(self.on_input)
        return self

    def __exit__(self, *error: object) -> None:
        if self.saved is not None:
            import termios

            termios.tcsetattr(0, termios.TCSANOW, self.saved)

    def on_input(self) -> None:
        """Take what was typed; more is read when the guest has taken this."""
        try:
            typed = os.read(0, 1024)
        except OSError:
            typed = b""
        self.loop.remove_reader(0)
        for byte in typed:
            self.take(byte)
        if typed:
            self.feed()

    def take(self, byte: int) -> None:
        """Sort out one byte: for us, or for the guest."""
        if self.saved is None or not (self.escaped or byte == CTRL_A):
            self.pending.append(byte)
        elif not self.escaped:
            self.escaped = True
        else:
            self.escaped = False
            if byte in b"xX":
                self.leave()
            elif byte in b"bB":
                self.serial.send_break()
            elif byte == CTRL_A:
                self.pending.append(byte)
            else:
                os.write(2, HELP)

    def on_room(self) -> None:
        """In a vCPU's thread: the guest has emptied the receiver."""
        if self.pending:
            self.loop.call_soon(self.feed)

    def feed(self) -> None:
        """Give the guest what it has room for, and listen again once it has everything."""
        del self.pending[: self.serial.enqueue(bytes(self.pending[:64]))]
        if self.pending:
            return
        if self.waitable:
            self.loop.remove_reader(0)
            self.loop.add_reader(0, self.on_input)
        else:
            self.loop.call_soon(self.on_input)
