"""`sandfork doctor`: what this host offers, what is missing, which limits cannot be enforced."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sandfork.cli_terms import ConfigFile, err, out, settings

if TYPE_CHECKING:
    from sandfork.serve_doctor import Check

STYLES = {"ok": "green", "missing": "bold red", "accepted": "yellow", "fact": "dim"}


def doctor(
    config: ConfigFile = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
    reduced: Annotated[
        bool | None, typer.Option("--reduced", help="As a service that was told to do without namespaces.")
    ] = None,
    tier: Annotated[str, typer.Option(hidden=True)] = "process",
) -> None:
    """Probe every isolation primitive by trying to break it; exit status 1 when the service would not start."""
    loaded = settings(config, process__reduced=reduced)
    from sandfork.serve_doctor import examine, is_fatal  # the whole service, which `--help` does not need

    checks = examine(loaded.config, tier)
    if as_json:
        typer.echo(json.dumps([asdict(check) for check in checks], indent=2))
    else:
        out.print(_table(checks))
    if is_fatal(checks):
        err.print("sandfork: the service would not start here; what is missing is named above", markup=False)
        raise typer.Exit(1)


def _table(checks: list[Check]) -> Table:
    table = Table("area", "what", "", "", box=None, pad_edge=False, header_style="bold")
    for check in checks:
        state = "" if check.state == "fact" else f"[{STYLES[check.state]}]{check.state}[/]"
        table.add_row(check.area, check.name, state, escape(check.told))
    return table
