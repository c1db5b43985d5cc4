"""Builds pyvmm_kvm._kvm with cffi in API mode: the C compiler checks every number and layout against linux/kvm.h."""

from cffi import FFI

ffibuilder = FFI()
ffibuilder.cdef("int pyvmm_ioctl(int fd, unsigned long request, void *argument);")
ffibuilder.set_source(
    "pyvmm_kvm._kvm",
    """
    #include <errno.h>
    #include <sys/ioctl.h>
    static int pyvmm_ioctl(int fd, unsigned long request, void *argument)
    {
        int result = ioctl(fd, request, argument);
        return result < 0 ? -errno : result;
    }
    """,
    py_limited_api=True,
    define_macros=[("Py_LIMITED_API", "0x030b0000")],
)
