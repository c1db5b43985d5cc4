"""Builds pyvmm_memory._memory with cffi in API mode: what CPython cannot say, such as a memory fence."""

from cffi import FFI

ffibuilder = FFI()
ffibuilder.cdef("void pyvmm_fence(void);")
ffibuilder.set_source(
    "pyvmm_memory._memory",
    """
    static void pyvmm_fence(void)
    {
        __atomic_thread_fence(__ATOMIC_SEQ_CST);
    }
    """,
    py_limited_api=True,
    define_macros=[("Py_LIMITED_API", "0x030b0000")],
)
