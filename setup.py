"""Take the five member packages from this checkout where they are here, by name otherwise."""

from pathlib import Path

from setuptools import setup

CHECKOUT = Path(__file__).resolve().parent


def need(member: str) -> str:
    folder, name = CHECKOUT / member, member.replace("_", "-")
    return f"{name} @ {folder.as_uri()}" if (folder / "pyproject.toml").is_file() else f"{name}~=0.1.0"


setup(install_requires=[need(f"pyvmm_{member}") for member in ("kvm", "memory", "device", "virtio", "loader")])
