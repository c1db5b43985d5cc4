"""Debian as a guest of a host of the lab: its stock kernels, an initramfs that brings their drivers, a whole system.

Nothing of it is changed for us: kernels are as their packages have them, and the system is what its maintainers'
scripts make of it, with a network by DHCP and a root account without a password.
"""

import hashlib
from pathlib import Path

from guest.host import cache_folder, install, run

from lab import debian
from lab.architectures import X86_64, Architecture
from lab.errors import LabError
from lab.image import made
from lab.kernel import Kernel
from lab.tree import Tree

SUITE = "bookworm"
# what a kernel for clouds has as modules and a guest needs before its disk is there
DRIVERS = ("virtio_mmio", "virtio_pci", "virtio_blk", "virtio_net", "ext4")
INIT = """#!/bin/busybox sh
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sysfs /sys
/bin/busybox mount -t devtmpfs devtmpfs /dev
for module in $(/bin/busybox cat /modules); do /bin/busybox insmod $module; done
for attempt in 1 2 3 4 5 6 7 8 9 10; do
    [ -b /dev/vda ] && break
    /bin/busybox sleep 1
done
/bin/busybox mount -t ext4 /dev/vda /mnt || exec /bin/busybox sh
/bin/busybox umount /proc /sys
/bin/busybox mount --move /dev /mnt/dev
exec /bin/busybox switch_root /mnt /sbin/init
"""
PACKAGES = "systemd-sysv,udev,dbus,iproute2,busybox,kmod"
NETWORK = "[Match]\\nName=e*\\n[Network]\\nDHCP=ipv4\\n"
# each with the new system's folder as $1, as root or as what looks like it
CUSTOMIZE = (
    'sed -i "s/^root:[^:]*:/root::/" "$1/etc/shadow"',
    'echo guest > "$1/etc/hostname"',
    f'printf "{NETWORK}" > "$1/etc/systemd/network/80-dhcp.network"',
    'systemctl --root="$1" enable systemd-networkd',
    # minutes of an emulated processor for what a test never sees
    'systemctl --root="$1" mask apt-daily.timer apt-daily-upgrade.timer fstrim.timer dpkg-db-backup.timer',
    'systemctl --root="$1" mask systemd-networkd-wait-online.service e2scrub_reap.service e2scrub_all.timer',
)
IMAGE, IMAGE_SIZE = "image.ext4", "600M"


def kernel(package: str, architecture: Architecture = X86_64, suite: str = SUITE) -> Path:
    """Return a folder with a stock kernel, ``vmlinuz``, and an initramfs for a disk with ext4, ``initrd``.

    Args:
        package: that depends on the kernel, such as ``linux-image-cloud-amd64``.
        architecture: the guest's.
        suite: the Debian that has it.

    Raises:
        LabError: it cannot be had.
    """
    key = hashlib.sha256(f"{INIT} {DRIVERS}".encode()).hexdigest()[:8]
    folder = cache_folder() / "lab" / f"guest-{package}-{key}"

    def fill(into: Path) -> None:
        install(["busybox-static", "kmod"], "which make a guest's initramfs")
        # newer kernels for an old Debian come with its security updates, which this machine's own sources have
        source = "" if suite == debian.own_suite() else suite
        archives = debian.fetch(cache_folder() / "lab" / f"apt-{package}", architecture.debian, source, [package])
        kernels = [path for path in archives if debian.package_name(path).startswith("linux-image-")]
        found = Kernel(next(path for path in kernels if debian.package_name(path) != package))
        tree = Tree()
        tree.base()
        load = found.install(tree, DRIVERS, ())
        tree.file("modules", "\n".join(load).encode())
        tree.file("usr/bin/busybox", Path("/bin/busybox").read_bytes(), 0o755)
        tree.file("init", INIT.encode(), 0o755)
        (into / "vmlinuz").write_bytes(found.image)
        (into / "initrd").write_bytes(tree.pack())

    return made(folder, f"fetching {package} for a guest", 20, fill)


def system() -> Path:
    """Return a raw image of a Debian with systemd on ext4, which is made once.

    Raises:
        LabError: mmdebstrap or the archive said no.
    """
    key = hashlib.sha256(f"{SUITE} {PACKAGES} {CUSTOMIZE} {IMAGE_SIZE}".encode()).hexdigest()[:8]

    def fill(into: Path) -> None:
        install(["mmdebstrap", "e2fsprogs"], "which make a Debian system")
        # the hook runs where files belong to whom they should, whoever we are
        for folder in (into, into.parent):
            folder.chmod(0o777)
        # a second mount of it is without the /proc and /sys that are mounted there meanwhile
        pack = (
            'mkdir "$1.again" && mount --bind "$1" "$1.again" && '
            f'mke2fs -q -t ext4 -d "$1.again" "{into / IMAGE}" {IMAGE_SIZE} && '
            'umount "$1.again" && rmdir "$1.again"'
        )
        hooks = [f"--customize-hook={hook}" for hook in (*CUSTOMIZE, pack)]
        run(["mmdebstrap", "--quiet", "--variant=minbase", f"--include={PACKAGES}", *hooks, SUITE, "/dev/null"])
        if not (into / IMAGE).exists():
            raise LabError("mmdebstrap made no image; see what it said above")
        into.chmod(0o755)

    folder = cache_folder() / "lab" / f"debian-{SUITE}-{key}"
    return made(folder, "making a Debian system with systemd", 60, fill) / IMAGE
