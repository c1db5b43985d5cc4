"""A host's kernel out of its Debian package: the image, and those modules that are wanted with what they need."""

import lzma
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from guest.host import run

from lab import debian
from lab.errors import LabError
from lab.tree import Tree

DEPENDS = re.compile(rb"(?:^|\0)depends=([^\0]*)\0")


class Kernel:
    """What a kernel's package holds.

    Attributes:
        release: as ``uname -r`` says it.
        image: what boots.
        modules: each module's name, with dashes as underscores, and its path and content.
    """

    def __init__(self, archive: Path) -> None:
        self.image = b""
        self.modules: dict[str, tuple[str, bytes]] = {}
        self.builtin: set[str] = set()
        self.lists: dict[str, bytes] = {}
        for member, data in debian.members(archive):
            path = PurePosixPath(member.name)
            if path.name.startswith("vmlinu"):
                self.image = data
                self.release = path.name.partition("-")[2]
            elif path.name.startswith("modules."):
                self.lists[path.name] = data
            elif ".ko" in path.suffixes[-2:]:
                name = path.name.partition(".ko")[0].replace("-", "_")
                where = str(path).removeprefix("./").removeprefix("usr/").removesuffix(".xz")
                self.modules[name] = (where, lzma.decompress(data) if path.suffix == ".xz" else data)
        if not self.image:
            raise LabError(f"{archive.name} holds no kernel")
        names = self.lists.get("modules.builtin", b"").decode().split()
        self.builtin = {PurePosixPath(name).stem.replace("-", "_") for name in names}

    def needed(self, name: str) -> list[str]:
        """Return what has to be loaded for a module, in order, itself last; nothing where it is built in.

        Raises:
            LabError: there is no such module.
        """
        if name in self.builtin:
            return []
        if name not in self.modules:
            raise LabError(f"kernel {self.release} has no module {name}")
        found = DEPENDS.search(self.modules[name][1])
        names = found[1].decode().replace("-", "_").split(",") if found else []
        order = [module for other in names if other for module in self.needed(other)]
        return list(dict.fromkeys([*order, name]))

    def has(self, name: str) -> bool:
        """Say whether there is such a module, built in or not."""
        return name in self.builtin or name in self.modules

    def install(self, tree: Tree, load: Iterable[str], also: Iterable[str]) -> list[str]:
        """Add modules to a tree, with the index that modprobe reads; return the paths to load at boot, in order."""
        order = list(dict.fromkeys(module for name in load if self.has(name) for module in self.needed(name)))
        rest = [module for name in also if self.has(name) for module in self.needed(name)]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name) / "lib/modules" / self.release
            for module in {*order, *rest}:
                path = Path(name) / self.modules[module][0]
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(self.modules[module][1])
            for file in ("modules.builtin", "modules.order", "modules.builtin.modinfo"):
                (folder / file).write_bytes(self.lists.get(file, b""))
            run(["depmod", "-b", name, self.release])
            tree.folder(Path(name) / "lib", "usr/lib")
        return [f"/{self.modules[module][0]}" for module in order]
