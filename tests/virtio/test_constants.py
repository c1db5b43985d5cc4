"""Every constant equals the macro of that name in Linux's own header."""

import importlib
import subprocess
from pathlib import Path
from types import ModuleType

import pytest

HEADERS = {
    "status": "virtio_config.h",
    "features": "virtio_config.h",
    "device_ids": "virtio_ids.h",
    "ring": "virtio_ring.h",
    "mmio": "virtio_mmio.h",
    "pci": "virtio_pci.h",
    "block": "virtio_blk.h",
    "net": "virtio_net.h",
    "console": "virtio_console.h",
}


NEWER = {
    "VIRTIO_F_NOTIFICATION_DATA",
    "VIRTIO_F_NOTIF_CONFIG_DATA",
    "VIRTIO_NET_F_GUEST_USO4",
    "VIRTIO_NET_F_GUEST_USO6",
    "VIRTIO_NET_F_HOST_USO",
}
"""Than the oldest headers these are compared with, which are Linux 6.1's: left out where the header does so."""


def constants(module: ModuleType) -> dict[str, int]:
    return {name: value for name, value in vars(module).items() if name.isupper() and isinstance(value, int)}


@pytest.mark.parametrize("name", sorted(HEADERS))
def test_constants_equal_the_header(name: str, tmp_path: Path) -> None:
    ours = constants(importlib.import_module(f"pyvmm_virtio.constants.{name}"))
    assert ours
    source, program = tmp_path / "values.c", tmp_path / "values"
    lines = ""
    for constant in ours:
        line = f'printf("{constant} %lld\\n", (long long)({constant}));\n'
        lines += f"#ifdef {constant}\n{line}#endif\n" if constant in NEWER else line
    source.write_text(f"#include <stdio.h>\n#include <linux/{HEADERS[name]}>\nint main(void) {{\n{lines}}}\n")
    subprocess.run(["cc", "-o", program, source], check=True)
    printed = subprocess.run([program], check=True, capture_output=True, text=True).stdout
    theirs = {constant: int(value) for constant, value in (line.split() for line in printed.splitlines())}
    assert ours == {name: value for name, value in ours.items() if name in NEWER} | theirs


def test_every_module_is_compared() -> None:
    import pyvmm_virtio.constants

    files = {path.stem for path in Path(pyvmm_virtio.constants.__file__).parent.glob("*.py")}
    assert files - {"__init__"} == set(HEADERS)
