"""Builds pyvmm_memory._memory with cffi in API mode: what CPython cannot say, such as a fence or an atomic bit."""

from pathlib import Path

from cffi import FFI

NATIVE = Path(__file__).parent / "src" / "pyvmm_memory" / "native"

ffibuilder = FFI()
ffibuilder.cdef((NATIVE / "functions.h").read_text())
ffibuilder.set_source(
    "pyvmm_memory._memory",
    "".join((NATIVE / f"{part}.h").read_text() for part in ("prelude", "bitmap", "mapping", "userfault")),
    py_limited_api=True,
    define_macros=[("Py_LIMITED_API", "0x030b0000")],
    extra_compile_args=["-Wall", "-Wextra"],
)
