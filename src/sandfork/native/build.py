"""Compile the C programs of this directory: `python3 build.py OUT_DIR`.

The one list of what is built and with which flags; `./dev` and the package build (setup.py) both use it. Runs
before anything is installed, so it imports the standard library only.

Both kinds are freestanding (no libc): the programs run inside any image, the shared object is loaded into any
interpreter, and neither may depend on what the image brings.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

COMPILER = "gcc"
SOURCES = Path(__file__).resolve().parent

COMMON = (
    "-std=gnu11",
    "-O2",
    "-Wall",
    "-Wextra",
    "-Werror",
    "-ffreestanding",
    "-fno-stack-protector",
    "-fno-asynchronous-unwind-tables",
    "-nostdlib",
)
PROGRAM = ("-static", "-no-pie", "-fno-pie")
SHARED_OBJECT = ("-shared", "-fPIC")
# What stands before the C library must put nothing in its place that it does not mean to.
PRELOADED = (*SHARED_OBJECT, "-fvisibility=hidden")


@dataclass(frozen=True)
class Target:
    """One output file, made from `sources` by one run of the compiler."""

    name: str
    sources: tuple[str, ...]
    flags: tuple[str, ...]


TARGETS = (
    Target("sandfork-warden", ("warden.c",), PROGRAM),
    Target("zygote.so", ("zygote.c",), SHARED_OBJECT),
    Target("preload.so", ("preload.c",), PRELOADED),
    Target("park_jvm.so", ("park_jvm.c",), PRELOADED),
    Target("breaker.so", ("breaker.c",), (*SHARED_OBJECT, "-Wl,-z,now")),
)


class BuildFailed(Exception):
    """The compiler is missing or refused a source; the message holds what it said."""


def compile_target(target: Target, out_dir: Path) -> Path:
    """Compile `target` into `out_dir` and return the file; the file appears whole or not at all.

    *Raises* BuildFailed.
    """
    out = out_dir / target.name
    fresh = out_dir / f".{target.name}.{os.getpid()}"
    sources = [str(SOURCES / name) for name in target.sources]
    argv = [COMPILER, *COMMON, *target.flags, "-I", str(SOURCES), "-o", str(fresh), *sources]
    try:
        done = subprocess.run(argv, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise BuildFailed(f"{target.name}: no C compiler {argv[0]!r}: install gcc and libc6-dev") from None
    if done.returncode != 0:
        raise BuildFailed(f"{target.name}: {' '.join(argv)}\n{done.stdout}{done.stderr}")
    fresh.replace(out)
    return out


def compile_all(out_dir: Path) -> list[Path]:
    """Compile every target into `out_dir`, made when missing. *Raises* BuildFailed."""
    out_dir.mkdir(parents=True, exist_ok=True)
    return [compile_target(target, out_dir) for target in TARGETS]


def main() -> int:
    """Build into the directory named on the command line."""
    parser = argparse.ArgumentParser(description="Compile sandfork's C programs.")
    parser.add_argument("out_dir", type=Path, help="where the results go; made when missing")
    try:
        compile_all(parser.parse_args().out_dir)
    except BuildFailed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
