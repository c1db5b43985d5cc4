"""A network without privileges: passt turns the guest's frames into sockets of an ordinary process.

passt answers the guest's ARP, DHCP and NDP itself and gives it the host's addresses; see passt(1).
"""

from __future__ import annotations

import errno
import os
import socket

from pyvmm_virtio.backends.errors import NetError
from pyvmm_virtio.backends.stream import StreamNet

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

PREAMBLE = ("Failed to send", "Don't run as root")
"""What it says before it says why it ends: that there is no syslog, and that it gives up privileges."""
END_SECONDS = 0.4
"""How long it may take to end when it is asked to, and then again when it is made to."""
CURE = "install Debian's package passt"


class Passt(StreamNet):
    """A passt of our own, at the other end of a socketpair; it ends with this object or with this process.

    Args:
        options: further command line options, such as ``["--tcp-ports", "8080:80"]`` to forward a port.
        program: what to start.

    Raises:
        NetError: it is not installed or does not start; the message is passt's.
    """

    def __init__(self, options: Sequence[str] = (), program: str = "passt") -> None:
        import subprocess

        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        fd = theirs.fileno()
        command = [program, "--foreground", "--quiet", "--stderr", "--fd", str(fd), *options]
        self._said, saying = os.pipe()
        # nobody listens any more once it runs: what it then has to say must be lost rather than waited for
        os.set_blocking(saying, False)
        try:
            self._process = subprocess.Popen(
                command, pass_fds=[fd], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=saying
            )
        except FileNotFoundError:
            ours.close()
            os.close(self._said)
            raise NetError(errno.ENOENT, f"{program} is not there: {CURE}, or use a tap interface") from None
        finally:
            theirs.close()
            os.close(saying)
        super().__init__(ours)
        self._await()

    def _await(self) -> None:
        """See whether it stays: what is wrong with its options or privileges it finds out at once."""
        import subprocess

        try:
            self._process.wait(0.2)
        except subprocess.TimeoutExpired:
            return
        said = os.read(self._said, 65536).decode(errors="replace")
        self.close()
        # it prints its whole manual after an option it does not know
        why = next((line for line in said.splitlines() if line and not line.startswith(PREAMBLE)), "no reason")
        raise NetError(errno.ECONNREFUSED, f"passt ended with status {self._process.returncode}: {why}")

    def close(self) -> None:
        """End passt, and wait a moment for it; idempotent."""
        import subprocess

        super().close()
        for end in (self._process.terminate, self._process.kill):
            end()
            try:
                self._process.wait(END_SECONDS)
                break
            except subprocess.TimeoutExpired:
                continue
        if self._said >= 0:
            os.close(self._said)
            self._said = -1
