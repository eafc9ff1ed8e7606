"""A build backend (PEP 517) that builds nothing: the wheel of a source distribution is its Python packages as they are.

pip calls it in the unpacked sources, which it found and whose hash it checked. Nothing of them is run: setup.py is not
read, and names and metadata are those that the distribution was published with, in PKG-INFO and top_level.txt.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Iterator, Mapping
from email.parser import HeaderParser
from pathlib import Path

_WHEEL = "Wheel-Version: 1.0\nGenerator: sandfork\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_TIME = (1980, 1, 1, 0, 0, 0)  # the first that a zip archive can say
_LEFT_OUT = {"__pycache__"}


def get_requires_for_build_wheel(config_settings: Mapping[str, str] | None = None) -> list[str]:
    """Need nothing."""
    return []


def prepare_metadata_for_build_wheel(metadata_directory: str, config_settings: Mapping[str, str] | None = None) -> str:
    """Write the .dist-info directory there and return its name."""
    name = f"{_identity()}.dist-info"
    for path, content in _metadata(name):
        target = Path(metadata_directory, path)
        target.parent.mkdir(exist_ok=True)
        target.write_bytes(content)
    return name


def build_wheel(
    wheel_directory: str, config_settings: Mapping[str, str] | None = None, metadata_directory: str | None = None
) -> str:
    """Write the wheel there and return its name."""
    name = f"{_identity()}-py3-none-any.whl"
    info = f"{_identity()}.dist-info"
    with zipfile.ZipFile(Path(wheel_directory, name), "w") as wheel:
        members = dict([*_sources(), *_metadata(info)])
        for path, content in members.items():
            wheel.writestr(zipfile.ZipInfo(path, _TIME), content)
        record = "".join(f"{path},,\n" for path in (*members, f"{info}/RECORD"))
        wheel.writestr(zipfile.ZipInfo(f"{info}/RECORD", _TIME), record)
    return name


def _identity() -> str:
    """Return NAME-VERSION, with what a file's name may not have replaced (PEP 427)."""
    headers = HeaderParser().parsestr(Path("PKG-INFO").read_text(encoding="utf-8"), headersonly=True)
    return "-".join(headers[key].replace("-", "_") for key in ("Name", "Version"))


def _metadata(info: str) -> Iterator[tuple[str, bytes]]:
    yield f"{info}/METADATA", Path("PKG-INFO").read_bytes()
    yield f"{info}/WHEEL", _WHEEL.encode()


def _sources() -> Iterator[tuple[str, bytes]]:
    """Yield (path in the wheel, content) of all that is below what the distribution says it has at its top."""
    root = Path("src") if Path("src").is_dir() else Path()
    for top in _tops(root):
        if (root / f"{top}.py").is_file():
            yield f"{top}.py", (root / f"{top}.py").read_bytes()
        elif (root / top).is_dir():
            for path in sorted((root / top).rglob("*")):
                if path.is_file() and not path.is_symlink() and not _LEFT_OUT.intersection(path.parts):
                    yield path.relative_to(root).as_posix(), path.read_bytes()
        else:
            sys.exit(f"this package has to be built, which is not done here: there is no {top} in its sources")


def _tops(root: Path) -> list[str]:
    """Return the names of its packages and modules at the top."""
    for found in sorted(root.glob("*.egg-info/top_level.txt")):
        return found.read_text(encoding="utf-8").split()
    return sys.exit("this package has to be built, which is not done here: it does not say what packages it has")


class _Legacy:
    """The name by which pip asks for the backend where sources have no pyproject.toml."""

    get_requires_for_build_wheel = staticmethod(get_requires_for_build_wheel)
    prepare_metadata_for_build_wheel = staticmethod(prepare_metadata_for_build_wheel)
    build_wheel = staticmethod(build_wheel)


__legacy__ = _Legacy()
