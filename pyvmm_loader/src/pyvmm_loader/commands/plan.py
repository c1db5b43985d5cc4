"""`python -m pyvmm_loader plan`: what would go where in guest memory, as text or as a picture."""

from __future__ import annotations

from pyvmm_loader.errors import InvalidHeader
from pyvmm_loader.plan.entries import ENTRIES
from pyvmm_loader.plan.plan import BootPlan

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from pyvmm_loader.acpi import AcpiTables
    from pyvmm_loader.smbios import Smbios

UNITS = {"K": 10, "M": 20, "G": 30}


def size(text: str) -> int:
    """Read a size such as 256M."""
    unit = UNITS.get(text[-1:].upper())
    return int(text) if unit is None else int(text[:-1]) << unit


def address(text: str) -> int:
    """Read a number such as 0x100000."""
    return int(text, 0)


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "plan",
        help="show what would go where in guest memory",
        description="Show what would lie where in guest memory before the first instruction, and who reads it.",
    )
    parser.add_argument("path", help="the kernel")
    parser.add_argument("--memory", type=size, default=256 << 20, help="RAM, such as 256M (the default)")
    parser.add_argument("--cmdline", default="", help="the kernel's command line, such as console=ttyS0")
    parser.add_argument("--initrd", action="append", help="an initrd; several are joined")
    parser.add_argument("--bootconfig", metavar="FILE", help="a bootconfig to append to the initrd")
    parser.add_argument("--vcpus", type=int, default=1)
    parser.add_argument("--entry", default="auto", choices=ENTRIES, help="the boot protocol (%(default)s)")
    parser.add_argument("--module", action="append", default=[], metavar="FILE[,WORDS]", help="for PVH and multiboot")
    parser.add_argument("--variables", metavar="FILE", help="the variable store of UEFI firmware")
    parser.add_argument("--load-address", type=address, metavar="ADDRESS", help="where a flat binary goes")
    parser.add_argument("--dtb", metavar="FILE", help="the device tree of an arm64 or riscv64 guest")
    parser.add_argument("--interrupts", choices=("plic", "aia"), help="what a riscv64 guest without --dtb has for them")
    parser.add_argument(
        "--tables", choices=("mptable", "acpi"), default="mptable", help="how the guest learns of CPUs (%(default)s)"
    )
    parser.add_argument("--smbios", metavar="PRODUCT", help="add SMBIOS tables for a product of this name")
    parser.add_argument("--svg", metavar="FILE", help="write a picture as well")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> str:
    """Do it; return what to print."""
    bootconfig = ""
    if options.bootconfig:
        try:
            with open(options.bootconfig, encoding="utf-8") as file:
                bootconfig = file.read()
        except UnicodeDecodeError as error:
            raise InvalidHeader(f"{options.bootconfig}: no UTF-8 at byte {error.start}; name a text file") from error
    with BootPlan(
        options.path,
        options.memory,
        options.cmdline,
        options.initrd,
        options.vcpus,
        options.entry,
        acpi=acpi(options.vcpus) if options.tables == "acpi" else None,
        smbios=smbios(options) if options.smbios else None,
        bootconfig=bootconfig,
        modules=[(file, words) for file, _, words in (module.partition(",") for module in options.module)],
        variables=options.variables,
        load_address=options.load_address,
        dtb=options.dtb,
        interrupts=options.interrupts,
    ) as plan:
        if options.svg:
            with open(options.svg, "w", encoding="utf-8") as file:
                file.write(plan.svg())
        return str(plan)


def acpi(vcpus: int) -> AcpiTables:
    """Return the tables of a small machine with reduced hardware and one serial port."""
    from pyvmm_loader.acpi import AcpiTables
    from pyvmm_loader.acpi.devices.isa import serial_port

    return AcpiTables(vcpus, devices=[serial_port()])


def smbios(options: argparse.Namespace) -> Smbios:
    """Return the SMBIOS of the machine asked for."""
    from pyvmm_loader.smbios import Smbios
    from pyvmm_loader.x86_64.layout import split_ram

    return Smbios(product=options.smbios, vcpus=options.vcpus, memory=split_ram(options.memory))
