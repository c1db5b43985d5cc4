"""The lab itself: commands and their statuses, files in and out, and everything that can go wrong with a host."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import lab
import pytest
from guest.host import GuestError
from lab import architectures, debian, image
from lab.__main__ import arguments_of

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tests.lab.conftest import HostOf

ROOT = Path(__file__).resolve().parents[2]


def command(*words: str, env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``python -m lab`` with some words."""
    return subprocess.run(
        [sys.executable, "-m", "lab", *words], cwd=ROOT, env=env, capture_output=True, text=True, check=False,
        timeout=300, stdin=subprocess.DEVNULL,
    )  # fmt: skip


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Have the hosts of a test keep their files in a folder of its own, by which their emulators are known."""
    with tempfile.TemporaryDirectory(prefix="strays-") as name:  # pytest's are too long for the path of a socket
        monkeypatch.setenv("TMPDIR", name)
        yield Path(name)


def strays(temporary: Path) -> list[str]:
    """Return the emulators that run for a test."""
    found = subprocess.run(["pgrep", "-af", f"qemu-system.*{temporary}"], capture_output=True, text=True, check=False)
    return [line for line in found.stdout.splitlines() if "pgrep" not in line]


def test_a_command_has_its_output_apart_and_its_status(host_of: HostOf) -> None:
    host = host_of("x86_64")
    done = host.run(["sh", "-c", "echo out; echo err >&2; cat; exit 7"], input=b"given")
    assert (done.status, done.stdout, done.stderr) == (7, b"out\ngiven", b"err\n")
    assert host.run(["sh", "-c", "kill -9 $$"]).status == -9
    assert host.run(["pwd"]).text == "/root/pyvmm\n"
    assert host.run(["sh", "-c", "echo $ASKED"], env={"ASKED": "so"}).text == "so\n"


def test_much_output_comes_as_it_is(host_of: HostOf) -> None:
    pieces: list[bytes] = []
    done = host_of("x86_64").run(["head", "-c", "3000000", "/dev/zero"], on_output=pieces.append)
    assert done.status == 0
    assert b"".join(pieces) == bytes(3_000_000)
    assert len(pieces) > 1


def test_a_command_that_is_not_there_is_named(host_of: HostOf) -> None:
    with pytest.raises(lab.LabError, match=r"^nothing-such: FileNotFoundError"):
        host_of("x86_64").run(["nothing-such"])
    with pytest.raises(lab.LabError, match="ended with status 3:\nwhy"):
        host_of("x86_64").run(["sh", "-c", "echo why >&2; exit 3"], check=True)


def test_a_command_that_never_ends_is_ended(host_of: HostOf) -> None:
    host = host_of("x86_64")
    with pytest.raises(lab.LabError, match="'sleep 1000' did not end in time"):
        host.run(["sleep", "1000"], timeout=1)
    assert host.run(["pgrep", "sleep"]).status == 1


def test_a_child_that_keeps_the_output_open_keeps_nobody(host_of: HostOf) -> None:
    done = host_of("x86_64").run(["sh", "-c", "sleep 600 & echo started"], timeout=60)
    assert (done.status, done.text) == (0, "started\n")


def test_files_go_in_and_out(host_of: HostOf, tmp_path: Path) -> None:
    host = host_of("x86_64")
    folder = tmp_path / "sent"
    (folder / "inner").mkdir(parents=True)
    (folder / "inner/file").write_bytes(os.urandom(300_000))
    host.put(folder, "/tmp/here")
    host.get("/tmp/here/sent", tmp_path / "back")
    assert (tmp_path / "back/sent/inner/file").read_bytes() == (folder / "inner/file").read_bytes()
    with pytest.raises(lab.LabError, match="No such file"):
        host.get("/nothing", tmp_path)


def test_a_host_that_panics_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    log = tmp_path / "console"
    with lab.Host("x86_64", log=log) as host:
        with pytest.raises(lab.LabError, match=r"the x86_64 host is gone: its console said: .*Kernel panic"):
            host.run(["sh", "-c", "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger"])
        with pytest.raises(lab.LabError, match="is gone"):
            host.run(["true"])
    assert "sysrq" in log.read_text()
    with pytest.raises(lab.LabError, match="closed"):
        host.run(["true"])


def test_the_command_has_the_status_and_the_shared_folder(temporary: Path, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("from here")
    done = command(
        "x86_64", "--share", str(tmp_path), "--", "sh", "-c", "cat /share/in; echo back > /share/out; exit 9"
    )
    assert (done.returncode, done.stdout) == (9, "from here")
    assert (tmp_path / "out").read_text() == "back\n"
    assert strays(temporary) == []


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), pytest.param(signal.SIGTERM, 130, marks=pytest.mark.slow), (signal.SIGKILL, -9)],
)
def test_whatever_ends_the_lab_ends_its_host(temporary: Path, number: int, status: int) -> None:
    process = subprocess.Popen(
        # who runs the tests in the background may have SIGINT ignored
        ["env", "--default-signal=INT", sys.executable, "-m", "lab", "x86_64", "--", "sh", "-c", "echo here; sleep 1h"],
        cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"here\n"
        process.send_signal(number)
        try:
            assert process.wait(20) == status
        finally:
            process.kill()
        assert process.stderr is not None
        if status > 0:
            assert process.stderr.read().splitlines()[-1] == b"lab: interrupted; the host was ended"
    time.sleep(0.2)
    assert strays(temporary) == []


def test_a_time_limit_ends_the_command() -> None:
    done = command("x86_64", "--timeout", "2", "--", "sleep", "1000")
    assert done.returncode == 124
    assert done.stderr.splitlines()[-1] == "lab: the command did not end in 2 s; the host was ended"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sparc"], "lab: no host of architecture 'sparc': there are x86_64, aarch64, riscv64"),
        (["x86_64", "--cpus", "0"], "--cpus takes 1 to 8"),
        (["x86_64", "--memory", "16"], "--memory takes 512M or more: the host's files live in it"),
        (["x86_64", "--share", "/nothing"], "--share /nothing: there is no such folder"),
        (["x86_64", "--disk", "/nothing"], "--disk /nothing: there is no such file"),
        (["x86_64", "ls"], "unrecognized arguments: ls"),
    ],
)
def test_wrong_words_are_one_line(words: Sequence[str], message: str) -> None:
    done = command(*words)
    assert done.returncode in (1, 2)
    assert done.stderr.splitlines()[-1].endswith(message)
    assert "Traceback" not in done.stderr


def test_arguments_of_the_command_are_the_commands() -> None:
    assert arguments_of(["x86_64", "--", "ls", "--", "-l"]).command == ["ls", "--", "-l"]


def test_no_network_and_nothing_kept_is_one_line(tmp_path: Path) -> None:
    settings = tmp_path / "apt.conf"
    settings.write_text('Acquire::http::Proxy "http://127.0.0.1:9";\nAcquire::Retries "0";\n')
    done = command(
        "x86_64", "--", "true", env={**os.environ, "XDG_CACHE_HOME": str(tmp_path), "APT_CONFIG": str(settings)}
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("lab: no packages for amd64: ")
    assert done.stderr.splitlines()[-1].endswith("is there a network, and room?")
    assert not list((tmp_path / "pyvmm/lab").glob("x86_64-*"))


def test_no_room_leaves_no_half_made_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def full(folder: Path) -> None:
        (folder / "root.cpio").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    with pytest.raises(lab.LabError, match=r"trying: No space left on device; make room"):
        image.made(tmp_path / "lab/x86_64-1", "trying", 1, full)
    assert list((tmp_path / "lab").iterdir()) == []


def test_a_damaged_package_is_removed(tmp_path: Path) -> None:
    archive = tmp_path / "coreutils_1_amd64.deb"
    archive.write_bytes(b"!<arch>\nnothing")
    with pytest.raises(lab.LabError, match="damaged and was removed"):
        list(debian.members(archive))
    assert not archive.exists()


def test_an_emulator_that_cannot_be_had_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(packages: Sequence[str], why: str) -> None:
        raise GuestError("'apt-get install' failed with status 100:\nE: Could not open lock file")

    monkeypatch.setattr("lab.hosts.install", refuse)
    monkeypatch.setattr("lab.hosts.shutil.which", lambda name: None)
    with pytest.raises(lab.LabError, match=r"as root, 'apt-get install qemu-system-arm ipxe-qemu' \(E: Could not open"):
        lab.Host("aarch64")


def test_debians_names_find_an_architecture() -> None:
    assert architectures.find("arm64") is architectures.AARCH64
