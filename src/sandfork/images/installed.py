"""What a built tree has of Python and Node packages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib.metadata import Distribution, PathDistribution
from pathlib import Path


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
