"""What a built tree has of Python and Node packages, and making its compiled Python modules independent of times."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path

_CHECKED, _UNCHECKED = b"\3\0\0\0", b"\1\0\0\0"


def npm_packages(prefix: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (name, version, "npm") of everything below a prefix of npm's."""
    for path in sorted(prefix.glob("node_modules/**/package.json")):
        if path.parent.parent.name != "node_modules" and not path.parent.parent.name.startswith("@"):
            continue
        told = json.loads(path.read_text())
        if "name" in told and "version" in told:
            yield str(told["name"]), str(told["version"]), "npm"


def pypi_packages(target: Path) -> Iterator[tuple[str, str, str]]:
    """Yield (name, version, "pypi") of everything that pip installed to a target."""
    for path in sorted(target.glob("*.dist-info")):
        distribution: Distribution = PathDistribution(path)
        yield distribution.metadata["Name"], distribution.version, "pypi"


def compiled_without_times(tree: Path) -> None:
    """Have compiled modules that are checked against their source's hash not be checked at all (PEP 552).

    That is how they are compiled when SOURCE_DATE_EPOCH is set. Nothing changes an image's sources, and reading each
    to sum it up would have imports take longer than on the host.
    """
    for directory, _, names in os.walk(tree / "usr"):
        for name in names:
            if not name.endswith(".pyc"):
                continue
            with open(os.path.join(directory, name), "r+b") as file:
                file.seek(4)
                if file.read(4) == _CHECKED:
                    file.seek(4)
                    file.write(_UNCHECKED)
