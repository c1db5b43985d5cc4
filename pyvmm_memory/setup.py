from setuptools import Extension, setup

setup(
    cffi_modules=["_build_memory.py:ffibuilder"],
    ext_modules=[
        Extension(
            "pyvmm_memory._window",
            ["src/pyvmm_memory/_window.c"],
            define_macros=[("Py_LIMITED_API", "0x030b0000")],
            py_limited_api=True,
            extra_compile_args=["-O2", "-Wall", "-Wextra"],
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
