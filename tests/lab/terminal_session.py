"""A person at a guest's serial console: runs a VMM on a terminal, waits for words and types others.

Runs in a host of the lab: ``python3 tests/lab/terminal_session.py SECONDS WAIT TYPE WAIT TYPE ... -- VMM ...``. Each
TYPE is typed when the WAIT before it has come; all that comes is printed. The status is the VMM's, or 124 when the time
is up.
"""

import os
import pty
import select
import sys
import time


def main(words: list[str]) -> int:
    """Hold the session; returns the exit status."""
    at = words.index("--")
    seconds, script, command = float(words[0]), words[1:at], words[at + 1 :]
    child, terminal = pty.fork()
    if not child:
        os.execvp(command[0], command)
    deadline = time.monotonic() + seconds
    new = b""
    while True:
        if not select.select([terminal], [], [], max(0, deadline - time.monotonic()))[0]:
            print(f"\nsession: waited in vain for {script[:1]}", flush=True)
            os.kill(child, 9)
            return 124
        try:
            data = os.read(terminal, 65536)
        except OSError:  # nobody is at the other end any more
            break
        if not data:
            break
        os.write(1, data)
        new += data
        if script and script[0].encode() in new:
            new = b""
            os.write(terminal, script[1].encode() + b"\r")
            script = script[2:]
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if script:
        print(f"\nsession: it ended without {script[0]!r}", flush=True)
        return 1
    return status


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
