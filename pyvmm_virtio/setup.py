"""Take the sibling packages from this checkout where there is one, by name otherwise."""

from pathlib import Path

from setuptools import setup

CHECKOUT = Path(__file__).resolve().parent.parent


def need(member: str) -> str:
    folder, name = CHECKOUT / member, member.replace("_", "-")
    return f"{name} @ {folder.as_uri()}" if (folder / "pyproject.toml").is_file() else f"{name}~=0.1.0"


setup(
    cffi_modules=["_build_virtio.py:ffibuilder"],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
    install_requires=["cffi>=2.0", "typing-extensions>=4.6", need("pyvmm_memory"), need("pyvmm_device")],
)
