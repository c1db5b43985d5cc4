"""Debian's stock kernels, unmodified, and a whole Debian with systemd, as guests on hardware KVM."""

from __future__ import annotations

import hashlib
import os
from typing import TYPE_CHECKING

import lab
import pytest
from guest import initramfs
from lab import guests

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.lab.conftest import HostOf

KERNELS = ("linux-image-cloud-amd64", "linux-image-6.12-cloud-amd64")
VMM = ["python3", "examples/minimal_vmm.py"]
SERVER = "python3 -m http.server 8000 --bind 127.0.0.1 --directory /srv >/dev/null 2>&1 &"


@pytest.mark.parametrize(
    ("package", "cpus"),
    [
        (KERNELS[0], 4),
        (KERNELS[1], 1),
        pytest.param(KERNELS[0], 1, marks=pytest.mark.slow),
        pytest.param(KERNELS[1], 4, marks=pytest.mark.slow),
    ],
)
def test_stock_kernels_reach_userspace(host_of: HostOf, package: str, cpus: int) -> None:
    host = host_of("x86_64")
    folder = f"/tmp/{package}"
    host.put(guests.kernel(package) / "vmlinuz", folder)
    host.put(initramfs.demo(), folder)
    words = ["--kernel", f"{folder}/vmlinuz", "--initrd", f"{folder}/{initramfs.demo().name}", "--cpus", str(cpus)]
    done = host.run([*VMM, *words, "--cmdline", "console=ttyS0 panic=-1 reboot=k"], timeout=240)
    assert done.status == 0, done.text[-2000:] + done.stderr.decode()
    assert "guest: Linux" in done.text
    assert f"{cpus} CPU" in done.text.partition("guest: Linux")[2]
    assert "Hypervisor detected: KVM" in done.text
    assert "kvm-clock" in done.text
    for complaint in ("Firmware Bug", "firmware bug", "BUG:", "Call Trace"):
        assert complaint not in done.text


@pytest.fixture(scope="module")
def system_host() -> Iterator[lab.Host]:
    """Return a host with the system's image as its disk, a kernel for it, and a server with a file to download."""
    with lab.Host("x86_64", disks=[guests.system()]) as host:
        folder = guests.kernel(KERNELS[0])
        for name in ("vmlinuz", "initrd"):
            host.put(folder / name, "/tmp/system")
        host.run(["mkdir", "-p", "/srv"], check=True)
        yield host


@pytest.mark.parametrize("transport", ["pci", pytest.param("mmio", marks=pytest.mark.slow)])
@pytest.mark.parametrize("last", ["poweroff", pytest.param("reboot", marks=pytest.mark.slow)])
def test_a_whole_debian(system_host: lab.Host, tmp_path: Path, transport: str, last: str) -> None:
    content = os.urandom(8 << 20)
    (tmp_path / "blob").write_bytes(content)
    system_host.put(tmp_path / "blob", "/srv")
    session = [
        "login: ", "root",
        ":~# ", "until ip route | grep default; do sleep 1; done; echo network' is up'",
        "network is up\r\n", "busybox wget -q -O - http://10.0.2.2:8000/blob | sha256sum; sync; echo down'loaded'",
        "downloaded\r\n", last,
    ]  # fmt: skip
    words = ["--kernel", "/tmp/system/vmlinuz", "--initrd", "/tmp/system/initrd", "--memory", "1G"]
    devices = ["--transport", transport, "--disk", "/dev/vda", "--net", "user"]
    line = "console=ttyS0 root=/dev/vda panic=-1 reboot=k systemd.show_status=1"
    start = f'{SERVER} exec "$@"; kill %1'
    vmm = [*VMM, *words, *devices, "--cmdline", line]
    done = system_host.run(
        ["sh", "-c", start, "sh", "python3", "tests/lab/terminal_session.py", "600", *session, "--", *vmm], timeout=700
    )
    assert done.status == 0, done.text[-4000:]
    assert hashlib.sha256(content).hexdigest() in done.text
    assert f"the guest {'powered off' if last == 'poweroff' else 'rebooted'}" in done.text
