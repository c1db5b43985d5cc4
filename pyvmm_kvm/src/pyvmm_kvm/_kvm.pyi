class _Lib:
    def pyvmm_ioctl(self, fd: int, request: int, argument: object) -> int: ...

lib: _Lib
