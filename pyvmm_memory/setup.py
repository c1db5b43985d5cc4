from setuptools import setup

setup(
    cffi_modules=["_build_memory.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
