"""The command lines of pip by which packages of PyPI are put below a directory, and none of their own code is run.

What a language's file names in `pypi` comes as wheels, with what that depends on. What it names in `pypi_files` is
taken by its hash and put there as it is, alone: a wheel is unpacked, and so are sources, by the backend in `unbuilt`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

_UNBUILT = Path(__file__).parent / "unbuilt"
_PIP = (sys.executable, "-m", "pip", "install", "--disable-pip-version-check")
_WHEELS = ("--only-binary", ":all:")
_FILES = ("--no-deps", "--no-build-isolation", "--use-pep517", "--no-cache-dir", "-r", "/dev/stdin")
_SHEBANG = b"#!" + sys.executable.encode()


@dataclass(frozen=True, slots=True)
class PipCommand:
    """A command line of pip, and what it is fed on stdin."""

    argv: tuple[str, ...]
    fed: str = ""


def wheels(names: Sequence[str], target: Path, *options: str) -> PipCommand:
    """Return what installs packages and what they depend on, wheels only."""
    return PipCommand((*_PIP, *_WHEELS, *options, "--target", str(target), "--", *names))


def files(pinned: Sequence[str], target: Path, *options: str) -> PipCommand:
    """Return what puts files there, each named as NAME==VERSION sha256:HASH. Sources that have to be built fail.

    A wheel that pip has made of such sources elsewhere is none of ours: its cache is not used.
    """
    argv = ("env", f"PYTHONPATH={_UNBUILT}", *_PIP, *_FILES, *options, "--upgrade", "--target", str(target))
    return PipCommand(argv, "".join(f"{each.replace(' ', ' --hash=')}\n" for each in pinned))


def without_the_builder(target: Path) -> None:
    """Have commands that pip made be of the image's own interpreter, and not of that which pip was run by."""
    changed = set()
    for path in sorted((target / "bin").glob("*")):
        first, newline, rest = path.read_bytes().partition(b"\n")
        if first == _SHEBANG:
            path.write_bytes(b"#!/usr/bin/python3" + newline + rest)
            changed.add(f"../../bin/{path.name}")
    for record in target.glob("*.dist-info/RECORD"):
        record.write_text("".join(_unsummed(record.read_text(), changed)))


def _unsummed(record: str, changed: set[str]) -> Iterator[str]:
    """Yield a RECORD's lines, without the sums of what has changed: they are optional (PEP 376)."""
    for line in record.splitlines():
        name = line.rsplit(",", 2)[0]
        yield f"{name},,\n" if name in changed else f"{line}\n"
