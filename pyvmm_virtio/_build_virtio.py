"""Builds pyvmm_virtio._virtio with cffi in API mode: data planes that serve a whole batch without the GIL."""

from pathlib import Path

from cffi import FFI

NATIVE = Path(__file__).parent / "src" / "pyvmm_virtio" / "native"

ffibuilder = FFI()
ffibuilder.cdef((NATIVE / "functions.h").read_text())
ffibuilder.set_source(
    "pyvmm_virtio._virtio",
    "".join((NATIVE / f"{part}.h").read_text() for part in ("prelude", "block")),
    py_limited_api=True,
    define_macros=[("Py_LIMITED_API", "0x030b0000")],
    extra_compile_args=["-O2", "-Wall", "-Wextra"],
)
