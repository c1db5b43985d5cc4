"""Builds pyvmm_kvm._kvm with cffi in API mode: the C compiler checks every number and layout against linux/kvm.h."""

import os
import runpy
import sysconfig
from pathlib import Path

from cffi import FFI

NATIVE = Path(__file__).parent / "src" / "pyvmm_kvm" / "native"
# structures of the other architectures, under names of our own, are there in every build
FOREIGN = ("aarch64.h", "riscv64.h")


def declare(arch: str) -> FFI:
    """Return the extension module for one architecture, whose kernel headers the C compiler must find."""
    constants = runpy.run_path(os.fspath(NATIVE / "constants.py"))
    tables = ["IOCTLS", "OFFSETS", f"IOCTLS_{arch.upper()}", f"OFFSETS_{arch.upper()}", "IOCTLS_FOREIGN"]
    names = dict.fromkeys(" ".join(constants.get(table, "") for table in tables).split())
    ffi = FFI()
    own = NATIVE / f"{arch}_structs.h"
    for header in (NATIVE / "common.h", own, *(NATIVE / name for name in FOREIGN), NATIVE / "functions.h"):
        if header.exists():
            ffi.cdef(header.read_text())
    ffi.cdef("\n".join(f"#define {name} ..." for name in names))
    sources = ("prelude.h", *FOREIGN, "foreign_ioctls.h", f"{arch}_checks.h", "functions.c")
    ffi.set_source(
        "pyvmm_kvm._kvm",
        "\n".join((NATIVE / name).read_text() for name in sources),
        py_limited_api=True,
        define_macros=[("Py_LIMITED_API", "0x030b0000")],
    )
    return ffi


# what is built for, which in a cross build is not what builds: "linux-aarch64"
ffibuilder = declare(sysconfig.get_platform().rpartition("-")[2])
