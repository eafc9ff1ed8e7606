"""`sandfork bench`: measure a service beside a bare interpreter; its options are those of `sandfork.bench`."""

from __future__ import annotations

import typer


def bench(context: typer.Context) -> None:
    """Measure a service, side by side with a bare interpreter (--help lists the options)."""
    from sandfork.bench.command import main  # its own imports would slow every other command

    raise typer.Exit(main(context.args))
