"""This checkout's packages as a host has them: Python as it is, C cross-compiled against the host's own headers."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

from guest.host import install, run

from lab import debian
from lab.architectures import Architecture
from lab.errors import LabError
from lab.tree import Tree

ROOT = Path(__file__).resolve().parents[1]
# what a package's setup.py asks for: for each module its sources, and how it wants to be compiled
MODULES = """
import json, runpy, setuptools, sys
found = []

def setup(**words):
    for script, _, what in (entry.partition(":") for entry in words.get("cffi_modules", ())):
        ffi = runpy.run_path(script)[what]
        name, _, _, options = ffi._assigned_source
        source = sys.argv[1] + "/" + script.replace(".py", ".c")
        ffi.emit_c_code(source)
        found.append([name, [source], options])
    for module in words.get("ext_modules", ()):
        options = {"define_macros": module.define_macros, "extra_compile_args": module.extra_compile_args}
        found.append([module.name, module.sources, options])

setuptools.setup = setup
runpy.run_path("setup.py")
print(json.dumps(found))
"""


def checkout() -> list[Path]:
    """Return the files of this checkout: those that git tracks or would; all of them where there is no git."""
    command = ["git", "-C", str(ROOT), "ls-files", "-co", "--exclude-standard", "-z"]
    done = subprocess.run(command, check=False, capture_output=True)
    names = done.stdout.decode().split("\0") if done.returncode == 0 else []
    found = [ROOT / name for name in names if name] or [
        path for path in ROOT.rglob("*") if not {".venv", "build", ".git"} & set(path.parts)
    ]
    return sorted(path for path in found if path.is_file())


def add_checkout(tree: Tree, files: list[Path], python: str) -> None:
    """Add the packages where Python finds them, and the checkout where tests look for their files."""
    for path in files:
        name = path.relative_to(ROOT)
        data = path.read_bytes()
        tree.file(f"root/pyvmm/{name.as_posix()}", data, path.stat().st_mode & 0o777)
        if len(name.parts) > 3 and name.parts[0].startswith("pyvmm_") and name.parts[1] == "src":
            tree.file(f"usr/local/lib/{python}/dist-packages/{'/'.join(name.parts[2:])}", data)


def compile_modules(architecture: Architecture, headers: Path, folder: Path) -> None:
    """Compile the packages' C for an architecture into a folder, under the names that they are installed by.

    Raises:
        LabError: no compiler could be had, or a module does not compile.
    """
    install(architecture.compiler, f"which compile for {architecture.name}")
    triplet = architecture.triplet
    compiler = f"{triplet}-gcc"
    uapi = headers / "usr/include"
    python = next(iter(sorted(uapi.glob("python3.*"))), None)
    if python is None:
        raise LabError(f"no Python headers for {architecture.name} in {headers}: remove the folder and try again")
    # cffi asks sysconfig what is built for, as setuptools does when it builds for another machine
    environment = {**os.environ, "_PYTHON_HOST_PLATFORM": f"linux-{architecture.name}"}
    for script in sorted(ROOT.glob("pyvmm_*/setup.py")):
        done = subprocess.run(
            [sys.executable, "-c", MODULES, str(folder)],
            check=False, capture_output=True, text=True, env=environment, cwd=script.parent,
        )  # fmt: skip
        if done.returncode:
            raise LabError(f"{script}: {done.stderr.strip()}")
        for name, sources, options in json.loads(done.stdout.splitlines()[-1]):
            package, _, module = name.partition(".")
            target = folder / package / f"{module}.abi3.so"
            target.parent.mkdir(exist_ok=True)
            defines = [f"-D{key}={value}" for key, value in options.get("define_macros", ())]
            run([
                compiler, "-shared", "-fPIC", "-O2", *options.get("extra_compile_args", ()), *defines,
                "-I", python, "-I", uapi / triplet / python.name, "-isystem", uapi / triplet, "-isystem", uapi,
                "-o", target, *(script.parent / source for source in sources),
            ])  # fmt: skip


def native_key(architecture: Architecture) -> str:
    """Return what tells one state of the packages' C from another."""
    digest = hashlib.sha256(repr(architecture).encode())
    patterns = ("setup.py", "_build_*.py", "src/*/*.c", "src/*/*.h", "src/*/native/*")
    for path in sorted(path for pattern in patterns for path in ROOT.glob(f"pyvmm_*/{pattern}")):
        if path.is_file():
            digest.update(path.read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()[:12]


def unpack_headers(archives: list[Path], folder: Path) -> None:
    """Unpack what is below /usr/include of some packages, and what it links to."""
    for archive in archives:
        for member, data in debian.members(archive):
            name = member.name.removeprefix("./")
            if not name.startswith(("usr/include/", "usr/lib/linux/")):
                continue
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            if member.issym():
                path.unlink(missing_ok=True)
                path.symlink_to(member.linkname)
            elif member.isreg() or member.islnk():
                path.write_bytes(data)
