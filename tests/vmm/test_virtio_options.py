"""What the options for virtio devices mean, and what is said of those that make no sense."""

import argparse
import os
import subprocess
from pathlib import Path

import pytest
from tests.vmm.conftest import VMM, Vmm

import virtio_options as options


@pytest.mark.parametrize(
    ("text", "path", "ro", "format_", "queues"),
    [
        ("disk.img", "disk.img", False, "raw", 0),
        ("disk.img,ro", "disk.img", True, "raw", 0),
        ("a,b,format=qcow2,queues=4,ro", "a,b", True, "qcow2", 4),
        ("ro,x", "ro,x", False, "raw", 0),
        ("a,serial=s,b", "a,serial=s,b", False, "raw", 0),
    ],
)
def test_disks(text: str, path: str, ro: bool, format_: str, queues: int) -> None:
    asked = options.disk(text)
    assert (asked.path, asked.ro, asked.format, asked.queues) == (path, ro, format_, queues)


@pytest.mark.parametrize("text", ["", ",ro", ",format=raw"])
def test_disks_without_a_path(text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match="there is no path"):
        options.disk(text)


def test_networks() -> None:
    asked = options.net("tap=tap0,mac=52:54:00:00:00:01,queues=2,capture=x.pcap")
    assert (asked.kind, asked.tap, asked.queues) == ("tap", "tap0", 2)
    assert (asked.mac, asked.capture) == ("52:54:00:00:00:01", "x.pcap")
    assert options.net("user").kind == "user"
    for text in ("", "tap", "tap=", "user=x", "bridge"):
        with pytest.raises(argparse.ArgumentTypeError, match=r"there is no kind|is no network: give user"):
            options.net(text)


def test_ports() -> None:
    asked = options.port("org.example.agent=/run/agent=1")
    assert (asked.name, asked.path) == ("org.example.agent", "/run/agent=1")
    for text in ("", "agent", "agent=", "=/run/agent"):
        with pytest.raises(argparse.ArgumentTypeError, match="give NAME=SOCKET"):
            options.port(text)


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--disk", "/nowhere/disk"], "No such file or directory: 'truncate -s 1G /nowhere/disk' makes an empty disk"),
        (["--disk", "/"], "it is a directory: give an image"),
        (["--disk", "/dev/null"], "neither a file nor a block device"),
        (["--disk", "/proc/version,ro"], "0 bytes are no disk of 512-byte sectors"),
        (["--disk", "{image},rw"], "'rw' is no option: those are ro, format=FORMAT"),
        (["--disk", "{image},queues=0"], "'queues=0' is no option"),
        (["--disk", "{image},serial=a-serial-number-of-22"], "give up to 20 characters of ASCII"),
        (["--disk", "{image},format=qcow3"], "no image format: give one of raw, qcow2"),
        (["--disk", "{image}", "--disk", "{image}"], "this process itself has locked it: give each disk its own"),
        (["--disk", "nbd:unix:"], "no address of an NBD server"),
        (["--disk", "nbd:unix:/nowhere"], "is there a server?"),
        (["--net", "tap=a-name-that-is-too-long"], "a name of 1 to 15 bytes"),
        (["--net", "tap=a/b"], "without space, slash or colon"),
        (["--net", "user,mac=01:00:00:00:00:00"], "no address of a network card"),
        (["--net", "user,queues=2"], "passt has one; tap=NAME can have several"),
        (["--net", "user,capture=/nowhere/frames"], "/nowhere/frames: No such file"),
        (["--port", "agent={image}"], "no socket can be made there"),
        (["--port", "agent=/nowhere/socket"], "no socket can be made there"),
        (["--rng"] + ["--disk", "{image},ro"] * 8, "use --transport pci"),
        (["--transport", "pci"] + ["--disk", "{image},ro"] * 32, "slots for 31 devices"),
    ],
)
def test_mistakes_are_told_before_anything_runs(vmm: Vmm, tmp_path: Path, more: list[str], message: str) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    done = vmm("--kernel", "/dev/null", *(word.format(image=image) for word in more))
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("minimal_vmm: --")
    assert message in line
    assert image.exists()


UNPRIVILEGED = ["setpriv", "--bounding-set=-all", "--inh-caps=-all"]


@pytest.mark.kvm
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give its capabilities away")
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--disk", "{image}"], "Permission denied: '--disk {image},ro' opens it for reading only"),
        (["--net", "tap=pyvmm-none"], "make it first, as root: ip tuntap add pyvmm-none mode tap user $USER"),
        (["--net", "user"], "install Debian's package passt, or use a tap interface"),
        (["--disk", "{image},ro,format=qcow2"], "install Debian's qemu-system-common"),
    ],
)
def test_what_is_missing_is_told_with_its_cure(tmp_path: Path, more: list[str], message: str) -> None:
    """Without a right to write, without capabilities, and without other programs."""
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    image.chmod(0o444)
    words = [word.format(image=image) for word in more]
    done = subprocess.run(
        [*UNPRIVILEGED, *VMM, "--kernel", "/dev/null", *words],
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        env={"PATH": "/nowhere"},
        executable="/usr/bin/setpriv",
    )
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert message.format(image=image) in line
