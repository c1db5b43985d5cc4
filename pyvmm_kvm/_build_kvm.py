"""Builds pyvmm_kvm._kvm with cffi in API mode: the C compiler checks every number and layout against linux/kvm.h."""

import os
import platform
import runpy
from pathlib import Path

from cffi import FFI

NATIVE = Path(__file__).parent / "src" / "pyvmm_kvm" / "native"
ARCH = platform.machine()

constants = runpy.run_path(os.fspath(NATIVE / "constants.py"))
tables = ["IOCTLS", "OFFSETS", f"IOCTLS_{ARCH.upper()}", f"OFFSETS_{ARCH.upper()}"]
names = ["KVM_DIRTY_LOG_PAGE_OFFSET", *" ".join(constants.get(table, "") for table in tables).split()]

ffibuilder = FFI()
for header in ("common.h", f"{ARCH}.h", "functions.h"):
    ffibuilder.cdef((NATIVE / header).read_text())
ffibuilder.cdef("\n".join(f"#define {name} ..." for name in names))
ffibuilder.set_source(
    "pyvmm_kvm._kvm",
    (NATIVE / "prelude.h").read_text(),
    py_limited_api=True,
    define_macros=[("Py_LIMITED_API", "0x030b0000")],
)
