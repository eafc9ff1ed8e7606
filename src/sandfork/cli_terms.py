"""What the commands share: where they print, and how they find the settings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from sandfork.config import Loaded, Machine, load, size

#: A table in a pipe or a file is not folded: whoever reads it there looks for whole lines.
WIDE = 240

#: Results go to stdout, everything said about them to stderr.
out = Console(highlight=False, soft_wrap=True, width=None if sys.stdout.isatty() else WIDE)
err = Console(stderr=True, highlight=False, soft_wrap=True)

ConfigFile = Annotated[
    Path | None,
    typer.Option(
        "--config", metavar="FILE", help="Settings file; else SANDFORK_CONFIG, else ./sandfork.toml if there."
    ),
]


def settings(file: Path | None, **options: object) -> Loaded:
    """Return the settings in force; an option is named as its key with `__` for the dot. *Raises* ConfigError."""
    named = {key.replace("__", "."): value for key, value in options.items()}
    return size(load(file, options=named), Machine.probe())


def print_plain(text: str) -> None:
    """Print text of ours to stdout as it is: no markup, no wrapping."""
    out.print(text, markup=False, soft_wrap=True)
