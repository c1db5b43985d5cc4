"""Prepare the demo guest and boot it with the example VMM: ``python -m guest boot``."""

import argparse
import json
import os
import sys
from pathlib import Path

from guest import distribution, initramfs, kernel
from guest.host import GuestError, is_pvm, kvm_refusal, say

VMM = Path(__file__).resolve().parent.parent / "examples" / "minimal_vmm.py"


def guest_kernel(flavour: str) -> Path:
    """Return the kernel image that suits this host."""
    if is_pvm() or flavour != "boot":
        return kernel.build(flavour).vmlinux
    return distribution.kernel()


def command_line(wait: int | None) -> str:
    """Return what the guest's kernel is told; ``wait`` is for the demo init."""
    words = ["console=ttyS0", "panic=-1", "reboot=k", "quiet"]
    return " ".join(words if wait is None else [*words, f"wait={wait}"])


def boot_in_lab(initrd: Path, words: str, more: list[str]) -> int:
    """Boot Debian's kernel with the example VMM in a host that has KVM, in an emulator; returns the exit status."""
    from lab import ARCHITECTURES, Host, base_image

    architecture = ARCHITECTURES["x86_64"]
    with Host(architecture) as host:
        host.put(base_image(architecture) / "vmlinuz", "/root/guest")
        host.put(initrd, "/root/guest")
        files = ["--kernel", "/root/guest/vmlinuz", "--initrd", f"/root/guest/{initrd.name}"]
        return host.interact(["python3", "examples/minimal_vmm.py", *files, "--cmdline", words, *more])


def boot(image: Path, initrd: Path, words: str, more: list[str]) -> None:
    """Replace this process by the example VMM; does not return."""
    if is_pvm():
        say(
            "This host has KVM without hardware virtualization (KVM-PVM): the guest's kernel runs in an emulator, "
            "so booting takes ten to thirty seconds instead of one."
        )
    vmm = [str(VMM), "--kernel", str(image), "--initrd", str(initrd), "--cmdline", words, *more]
    say("+ python " + " ".join(f"'{word}'" if " " in word else word for word in vmm))
    os.execv(sys.executable, [sys.executable, *vmm])


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m guest",
        description="Prepare the demo guest (everything is cached) and boot it with examples/minimal_vmm.py.",
        epilog="Further arguments of boot and shell go to the VMM: python -m guest boot --cpus 2 --memory 256",
    )
    parser.add_argument(
        "what",
        choices=["boot", "shell", "prepare"],
        help="boot: the demo guest; shell: busybox; prepare: only make the files, and print where they are as JSON",
    )
    parser.add_argument(
        "--flavour",
        choices=sorted(kernel.FLAVOURS),
        default="boot",
        help="boot: the smallest kernel (default); full: with network, block, PCI and virtio drivers",
    )
    arguments, more = parser.parse_known_args()
    if more and arguments.what == "prepare":
        parser.error(f"prepare does not take {' '.join(more)}")
    try:
        if arguments.what != "prepare":
            demo = arguments.what == "boot"
            initrd = initramfs.demo() if demo else initramfs.shell()
            words = command_line((60 if sys.stdin.isatty() else 0) if demo else None)
            if refusal := kvm_refusal():
                say(f"{refusal}: booting the same guest in an emulated host that has KVM, which takes a minute or two.")
                return boot_in_lab(initrd, words, more)
            boot(guest_kernel(arguments.flavour), initrd, words, more)
        files = {
            "kernel": str(guest_kernel(arguments.flavour)),
            "initrd": str(initramfs.demo()),
            "shell": str(initramfs.shell()),
            "cmdline": command_line(None),
        }
        print(json.dumps(files, indent=2))
    except GuestError as error:
        print(f"guest: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
