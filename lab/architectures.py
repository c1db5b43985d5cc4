"""The kinds of host: what is emulated, which Debian it runs, and what its kernel has to load before KVM is there."""

from dataclasses import dataclass, field

from lab.errors import LabError

# what every host is made of; nothing of it is configured, so what only a configured system needs stays away
COMMON = (
    "base-files base-passwd bash coreutils dash diffutils findutils grep gzip hostname iproute2 kmod libc-bin mount "
    "ncurses-base procps python3 python3-cffi-backend sed tar util-linux"
).split()
# drawn in by dependencies of packages above, for maintainers' scripts or an installation that is not there
UNUSED = frozenset(
    "adduser apt cdebconf cpio debconf dpkg initramfs-tools initramfs-tools-core klibc-utils libklibc linux-base "
    "logsave media-types passwd perl-base tzdata udev".split()
)
DEVICES = "virtio_pci virtio_console virtio_blk virtio_net virtio_rng".split()
KVM_USERS = "vhost_net vhost_vsock vsock_loopback vfio_pci vfio_iommu_type1 nbd loop ext4 dm_mod".split()


@dataclass(frozen=True, slots=True)
class Architecture:
    """A kind of host.

    Args:
        name: as ``uname -m`` says it.
        debian: as dpkg says it.
        triplet: of its compiler and libraries.
        machine: QEMU's program and the arguments that make it this host.
        suite: the Debian it runs.
        kernel: the package that depends on its kernel.
        console: the kernel's name for the serial line.
        modules: what is loaded at boot, in this order; with what they depend on.
        more_modules: what is there to be loaded.
        memory: in MiB, where the caller does not say.
        words: what else is on the kernel's command line.
        packages: what is installed beside `COMMON`.
        qemu: the Debian packages that have QEMU for it.
        compiler: the Debian packages that have a cross compiler for it.
    """

    name: str
    debian: str
    triplet: str
    machine: tuple[str, ...]
    suite: str
    kernel: str
    console: str
    modules: tuple[str, ...]
    memory: int
    qemu: tuple[str, ...]
    compiler: tuple[str, ...]
    more_modules: tuple[str, ...] = ()
    words: tuple[str, ...] = ()
    packages: tuple[str, ...] = field(default=())


X86_64 = Architecture(
    name="x86_64",
    debian="amd64",
    triplet="x86_64-linux-gnu",
    # x2APIC off: KVM in the host would offer it to its guests, and QEMU 7.2 emulates none for them. XSAVE off, and what
    # stands on it: XSETBV of a guest does not leave it there, so KVM would enter it with another XCR0 than it has set
    machine=("qemu-system-x86_64", "-M", "q35", "-cpu", "EPYC,+svm,+npt,-x2apic,-xsave"),
    suite="bookworm",
    kernel="linux-image-cloud-amd64",
    console="ttyS0",
    modules=("kvm_amd", "tun", *DEVICES),
    more_modules=(*KVM_USERS, "dm_flakey"),
    memory=3072,
    # the emulator's TSC is steady, which the watchdog of a host this slow does not believe
    words=("tsc=reliable",),
    packages=("passt",),
    qemu=("qemu-system-x86", "seabios", "ipxe-qemu"),
    compiler=("gcc", "libc6-dev"),
)
AARCH64 = Architecture(
    name="aarch64",
    debian="arm64",
    triplet="aarch64-linux-gnu",
    machine=("qemu-system-aarch64", "-M", "virt,virtualization=on,gic-version=3", "-cpu", "max,pauth-impdef=on"),
    suite="bookworm",
    kernel="linux-image-cloud-arm64",
    console="ttyAMA0",
    modules=("tun", *DEVICES),
    more_modules=tuple(KVM_USERS),
    memory=1536,
    qemu=("qemu-system-arm", "ipxe-qemu"),
    compiler=("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross"),
)
RISCV64 = Architecture(
    name="riscv64",
    debian="riscv64",
    triplet="riscv64-linux-gnu",
    machine=("qemu-system-riscv64", "-M", "virt", "-cpu", "rv64,h=true"),
    suite="trixie",  # the first Debian with this architecture
    kernel="linux-image-riscv64",
    console="ttyS0",
    modules=("kvm", "tun", *DEVICES),
    more_modules=tuple(KVM_USERS),
    memory=2048,
    qemu=("qemu-system-misc", "opensbi"),
    compiler=("gcc-riscv64-linux-gnu", "libc6-dev-riscv64-cross"),
)
ARCHITECTURES = {architecture.name: architecture for architecture in (X86_64, AARCH64, RISCV64)}


def find(name: str) -> Architecture:
    """Return the architecture of a name, Debian's names included.

    Raises:
        LabError: there is no host of it.
    """
    for architecture in ARCHITECTURES.values():
        if name in (architecture.name, architecture.debian):
            return architecture
    raise LabError(f"no host of architecture {name!r}: there are {', '.join(ARCHITECTURES)}")
