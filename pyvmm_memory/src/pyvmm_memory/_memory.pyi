class _Lib:
    def pyvmm_fence(self) -> None: ...

lib: _Lib
