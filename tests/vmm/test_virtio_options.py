"""What the options for virtio devices mean, and what is said of those that make no sense."""

import argparse
from pathlib import Path

import pytest
from tests.vmm.conftest import Vmm

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


@pytest.mark.kvm
@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--disk", "/nowhere/disk"], "No such file"),
        (["--disk", "{image},format=qcow3"], "no image format"),
        (["--disk", "{image}", "--disk", "{image}"], "has locked it"),
        (["--disk", "nbd:unix:"], "no address of an NBD server"),
        (["--net", "tap=a-name-that-is-too-long"], "a name of 1 to 15 bytes"),
        (["--net", "user,mac=01:00:00:00:00:00"], "no address of a network card"),
        (["--rng"] + ["--disk", "{image},ro"] * 8, "use --transport pci"),
    ],
)
def test_mistakes_are_told_before_anything_runs(vmm: Vmm, tmp_path: Path, more: list[str], message: str) -> None:
    image = tmp_path / "image"
    image.write_bytes(bytes(1 << 20))
    done = vmm("--kernel", "/dev/null", *(word.format(image=image) for word in more))
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr
