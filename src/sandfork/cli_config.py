"""`sandfork config`: the settings in force, or their reference."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from sandfork.cli_terms import ConfigFile, out, settings
from sandfork.config import document, effective


def config(
    config: ConfigFile = None,
    docs: Annotated[bool, typer.Option("--docs", help="Print the reference of all settings as Markdown.")] = False,
) -> None:
    """Show every setting in force and where its value came from."""
    if docs:
        typer.echo(document(), nl=False)
        return
    table = Table("key", "value", "from", box=None, pad_edge=False, header_style="bold")
    for key, value, source in effective(settings(config)):
        style = "dim" if source == "default" else ""
        table.add_row(key, value, source, style=style)
    out.print(table)
