"""A QEMU that serves an image of another format to us: started for one disk and ended with it.

No image format is parsed or guessed here. A guest that can write a raw image could make it look like another format,
with a path of the host in it, so the format is always the user's to name.
"""

from __future__ import annotations

import errno
import os
import time

from pyvmm_virtio.backends.errors import BackendError, BadImage
from pyvmm_virtio.backends.nbd.client import NbdDisk
from pyvmm_virtio.backends.nbd.connection import connect_unix

TYPE_CHECKING = False
if TYPE_CHECKING:
    import subprocess
    from tempfile import TemporaryDirectory
    from threading import Event
    from types import TracebackType
    from typing import Self

FORMATS = ("raw", "qcow2", "vmdk", "vhdx", "vpc", "vdi", "qed", "parallels", "dmg", "bochs", "cloop", "qcow")
EXPORT = "disk"
PATIENCE = 20.0
CLOSE_SECONDS = 0.5
"""How long `close` waits for QEMU, which may have much to write back."""
END_SECONDS = 60.0
"""How long QEMU may take to write back and end once it was told to, before it is killed."""
TOOL = "qemu-storage-daemon"
CURE = "install Debian's qemu-system-common (qemu-storage-daemon) or qemu-utils (qemu-nbd)"


class QemuNbdServer:
    """qemu-storage-daemon, or qemu-nbd where that is missing, serving one image on a unix socket.

    It ends with this object, or with this process: it then writes back what it holds and closes the image.

    Args:
        path: of the image, in any syntax that QEMU's file driver takes.
        format: as QEMU calls it: qcow2, vmdk, vhdx, vpc, vdi, ...
        read_only: serve it for reading only.
        tool: the program, one of those two.

    Raises:
        BadImage: QEMU does not open it; the message is QEMU's.
        BackendError: neither program is there, or it did not start.
    """

    def __init__(self, path: str, format: str, *, read_only: bool = False, tool: str = "") -> None:  # noqa: A002 - QEMU's word
        import tempfile
        from threading import Event

        if format not in FORMATS:
            raise BadImage(errno.EINVAL, f"{format!r} is no image format: give one of {', '.join(FORMATS)}", path)
        self.path, self.format, self.read_only = os.fspath(path), format, read_only
        self._folder = tempfile.TemporaryDirectory(prefix="pyvmm-nbd-")
        self.socket = f"{self._folder.name}/socket"
        self._process: subprocess.Popen[bytes] | None = None
        self._ended = Event()
        try:
            self._process = self._start(tool)
            self._await()
        except BaseException:
            self.close()
            raise

    def _start(self, tool: str) -> subprocess.Popen[bytes]:
        import shutil

        for name in [tool] if tool else [TOOL, "qemu-nbd"]:
            if shutil.which(name):
                command = self._storage_daemon() if name.endswith(TOOL) else self._qemu_nbd()
                return self._spawn([name, *command])
        raise BackendError(errno.ENOENT, f"neither {TOOL} nor qemu-nbd is there: {CURE}", tool or TOOL)

    def _spawn(self, command: list[str]) -> subprocess.Popen[bytes]:
        """Start it, from a thread that lives as long: the leash is to the thread that starts it, not to the process."""
        import shutil
        import subprocess
        from queue import SimpleQueue
        from threading import Thread

        # however this process ends, the server must not outlive it and keep the image locked
        leash = ["setpriv", "--pdeathsig", "TERM"] if shutil.which("setpriv") else []
        started: SimpleQueue[subprocess.Popen[bytes] | OSError] = SimpleQueue()

        ended, folder = self._ended, self._folder

        def run() -> None:
            try:
                with open(f"{folder.name}/messages", "wb") as said:
                    process = subprocess.Popen(
                        [*leash, *command], stdin=subprocess.DEVNULL, stdout=said, stderr=said, start_new_session=True
                    )
            except OSError as error:
                started.put(error)
                return
            started.put(process)
            process.wait()
            ended.set()

        Thread(target=run, name="nbd-server", daemon=True).start()
        process = started.get()
        if isinstance(process, OSError):
            raise process
        return process

    def _storage_daemon(self) -> list[str]:
        import json

        common = {"read-only": self.read_only, "discard": "unmap"}
        file = {"driver": "file", "node-name": "file", "filename": self.path, **common}
        disk = {"driver": self.format, "node-name": EXPORT, "file": "file", **common}
        server = {"addr": {"type": "unix", "path": self.socket}}
        export = {"type": "nbd", "id": "export", "node-name": EXPORT, "name": EXPORT, "writable": not self.read_only}
        asked = (("--blockdev", file), ("--blockdev", disk), ("--nbd-server", server), ("--export", export))
        return [word for option, value in asked for word in (option, json.dumps(value))]

    def _qemu_nbd(self) -> list[str]:
        image = f"driver={self.format},file.driver=file,file.filename={self.path.replace(',', ',,')}"
        options = ["--persistent", "--shared=0", "--discard=unmap", f"--socket={self.socket}"]
        options += ["--read-only"] * self.read_only
        return [*options, f"--export-name={EXPORT}", "--image-opts", image]

    def _await(self) -> None:
        """Wait until somebody listens on the socket."""
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                connect_unix(self.socket, deadline - time.monotonic()).close()
                return
            except OSError:
                if self._process is not None and self._process.poll() is not None:
                    why = f"QEMU does not serve it as {self.format}: {self._said()}"
                    raise BadImage(errno.EINVAL, why, self.path) from None
                if time.monotonic() > deadline:
                    why = f"QEMU did not begin to serve it within {PATIENCE:g} s: {self._said()}"
                    raise BackendError(errno.ETIMEDOUT, why, self.path) from None
            time.sleep(0.01)

    def _said(self) -> str:
        with open(f"{self._folder.name}/messages", errors="replace") as messages:
            # behind the options that we gave it, as JSON
            return messages.read().strip().rpartition("}: ")[2] or "it said nothing"

    def connect(self) -> NbdDisk:
        """Open the image; closing the disk ends the server."""
        try:
            return NbdDisk(self.socket, EXPORT, read_only=self.read_only, owns=[self])
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let QEMU write back and close the image, and wait for it for a moment; idempotent.

        Where it takes longer than that, it goes on by itself, and the image stays locked as long. What was flushed is
        safe in any case.
        """
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            if not self._ended.wait(CLOSE_SECONDS):
                from threading import Thread

                Thread(target=end, args=(process, self._ended, self._folder), name="nbd-end", daemon=True).start()
                return
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<QemuNbdServer {self.path!r} as {self.format} on {self.socket!r}>"


def end(process: subprocess.Popen[bytes], ended: Event, folder: TemporaryDirectory[str]) -> None:
    """See that a QEMU that takes its time ends at last, and remove its folder then."""
    if not ended.wait(END_SECONDS):
        process.kill()
    folder.cleanup()
