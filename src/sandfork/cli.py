"""`sandfork`: the command line. Each command is a module of its own, named cli_…

A mistake of the user's ends with one line that says what to do, never with a traceback: exit status 2 for a wrong
command line, 1 for what could not be done. `sandfork run` ends with the program's own status.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from sandfork import (
    __version__,
    cli_bench,
    cli_config,
    cli_doctor,
    cli_keys,
    cli_lang,
    cli_rootfs,
    cli_run,
    cli_serve,
    cli_snapshot,
)
from sandfork.cli_terms import err
from sandfork.config import ConfigError
from sandfork.errors import SandforkError
from sandfork.serve_refusal import Refused

PROGRAM = "sandfork"
INTERRUPTED = 130

app = typer.Typer(
    name=PROGRAM,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Run untrusted code in a sandbox forked from a warm template.",
)
app.command()(cli_serve.serve)
app.command(context_settings={"allow_interspersed_args": False})(cli_run.run)
app.command()(cli_doctor.doctor)
app.command(
    context_settings={"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)(cli_bench.bench)
app.add_typer(cli_keys.app, name="keys")
app.add_typer(cli_lang.app, name="lang")
app.add_typer(cli_rootfs.app, name="rootfs")
app.add_typer(cli_snapshot.app, name="snapshot")
app.command()(cli_config.config)


def show_version(wanted: bool) -> None:
    """Print the version and end, when asked to."""
    if wanted:
        typer.echo(f"sandfork {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[bool, typer.Option("--version", callback=show_version, is_eager=True, help="Print it.")] = False,
) -> None:
    """Take the options that stand before a command."""


def main() -> None:
    """Run the command line and end the process with its status."""
    try:
        app(prog_name=PROGRAM)
    except (Refused, ConfigError, SandforkError) as error:
        err.print(f"sandfork: {error}", markup=False)
        sys.exit(getattr(error, "status", 1))
    except KeyboardInterrupt:
        sys.exit(INTERRUPTED)
    except BrokenPipeError:
        # Whoever read our output has seen enough, as `head` does.
        sys.stderr.close()
        sys.exit(1)
