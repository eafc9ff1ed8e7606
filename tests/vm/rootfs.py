"""Make the disk of the guest from this machine's own files: nothing is downloaded, nothing is mounted, no root needed.

It holds the system's interpreter with its library, bash, the source under test with its C programs, and the Python
packages that the tests inside import. The result is one ext4 file.
"""

from __future__ import annotations

import compileall
import importlib.metadata
import os
import py_compile
import re
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import sandfork
from sandfork.native.build import compile_all

INTERPRETER = Path("/usr/bin/python3")
MKFS = "/sbin/mkfs.ext4"  # in no user's PATH
#: What programs in the tests call; ctypes finds libraries by ldconfig and its cache.
PROGRAMS = (
    "/bin/bash",
    "/bin/cat",
    "/usr/bin/head",
    "/usr/bin/id",
    "/bin/sleep",
    "/bin/stty",
    "/sbin/ldconfig",
    "/etc/ld.so.cache",
)
DISTRIBUTIONS = ("httpx", "msgspec", "pytest", "pyseccomp", "uvloop")
TESTS = Path(__file__).resolve().parents[1]
LINKS = ("/bin", "/sbin", "/lib", "/lib64")
EMPTY = ("proc", "sys", "dev", "run", "tmp", "var/lib", "root", "etc", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64")
NOT_NEEDED = shutil.ignore_patterns(
    "test",
    "tests",
    "idlelib",
    "ensurepip",
    "lib2to3",
    "tkinter",
    "turtledemo",
    "pydoc_data",
    "config-*",
    "dist-packages",
)
FREE_BYTES = 64 << 20


def make_disk(directory: Path) -> Path:
    """Return a new ext4 image in `directory`, which must be empty."""
    root, disk = directory / "root", directory / "disk"
    for name in EMPTY:
        (root / name).mkdir(parents=True)
    for link in LINKS:
        if os.path.islink(link):
            (root / link[1:]).symlink_to(os.readlink(link))
    _copy_distributions(root / "site", DISTRIBUTIONS)
    _copy_system(root)
    _copy_source(root)
    used = sum(path.lstat().st_size for path in root.rglob("*"))
    argv = [
        MKFS,
        "-q",
        "-O",
        "^has_journal",
        "-E",
        "root_owner=0:0",
        "-d",
        root,
        disk,
        f"{(used + FREE_BYTES) >> 10}k",
    ]
    subprocess.run(argv, check=True, capture_output=True, timeout=60)
    shutil.rmtree(root)
    return disk


def _copy_system(root: Path) -> None:
    python = INTERPRETER.resolve()
    library = Path("/usr/lib") / python.name
    shutil.copytree(library, root / "usr/lib" / python.name, ignore=NOT_NEEDED)
    programs = [str(python), *PROGRAMS, *_libseccomp()]
    extensions = map(str, root.rglob("*.so"))
    for name in [*programs, *_libraries([*programs, *extensions])]:
        target = root / name[1:]
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(name, target)
    (root / "usr/bin/python3").symlink_to(python.name)


def _libseccomp() -> list[str]:
    listing = subprocess.run(["/sbin/ldconfig", "-p"], capture_output=True, text=True, check=True).stdout
    return [line.split()[-1] for line in listing.splitlines() if line.split()[0] == "libseccomp.so.2"][:1]


def _libraries(programs: Iterable[str]) -> set[str]:
    """Return what the dynamic linker would load for them, itself included."""
    done = subprocess.run(["ldd", *programs], capture_output=True, text=True, check=False)
    return set(re.findall(r"(?:=> |^\t)(/\S+) \(0x", done.stdout, re.MULTILINE))


def _copy_distributions(target: Path, names: Iterable[str]) -> None:
    """Copy installed distributions and what they require."""
    left, seen = list(names), set()
    while left:
        name = left.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = importlib.metadata.distribution(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # required on other systems only
        left += [re.split(r"[^\w.-]", r)[0] for r in distribution.requires or () if "extra ==" not in r]
        for file in distribution.files or ():
            if file.suffix in (".py", ".so", ".pyc") or file.name in ("METADATA", "entry_points.txt"):
                (target / file).parent.mkdir(parents=True, exist_ok=True)
                if file.locate().exists() and ".." not in file.parts:
                    shutil.copy2(file.locate(), target / file)


def _copy_source(root: Path) -> None:
    """Copy the package under test, compile what is not compiled, and the tests that run inside."""
    package = Path(sandfork.__file__).parent
    shutil.copytree(package, root / "app/sandfork")
    if not (package / "native/bin").is_dir():
        compile_all(root / "app/sandfork/native/bin")
    for name in ("support", "kernel", "vm/inside"):
        shutil.copytree(TESTS / name, root / "app/tests" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for made in ("app", "site"):
        unchecked = py_compile.PycInvalidationMode.UNCHECKED_HASH
        compileall.compile_dir(root / made, quiet=2, invalidation_mode=unchecked, stripdir=root, prependdir="/")
