"""`sandfork run`: run one program in a sandbox and end as it ended.

Without --url a private service is started in this process for the one execution. The program's output is ours, byte
for byte; what we have to say about it goes to stderr behind "sandfork:".
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from sandfork.cli_terms import ConfigFile, err, settings
from sandfork.config import Loaded, client_environment
from sandfork.config.values import Unfit, parse_size
from sandfork.model import ExecRequest, LimitsOverride, Snippet
from sandfork.serve_languages import load_catalogue
from sandfork.serve_refusal import Refused

TIMED_OUT = 124
"""The exit status timeout(1) gives."""

PROGRAM_FROM_STDIN = "-"


def run(
    file: Annotated[str | None, typer.Argument(help="Program to run; - or nothing reads it from stdin.")] = None,
    args: Annotated[list[str] | None, typer.Argument(help="Arguments of the program.")] = None,
    code: Annotated[
        str | None, typer.Option("-e", "--execute", metavar="CODE", help="Run CODE instead of a file.")
    ] = None,
    language: Annotated[
        str | None, typer.Option("-l", "--language", help="Else by the file's extension, or python.")
    ] = None,
    timeout: Annotated[float | None, typer.Option(min=0.001, help="Seconds it may take (limit wall_s).")] = None,
    cpu: Annotated[float | None, typer.Option(min=0.001, help="Seconds of processor time (limit cpu_s).")] = None,
    cpus: Annotated[float | None, typer.Option(min=0.01, help="Processors at a time (limit cpus).")] = None,
    memory: Annotated[str | None, typer.Option(help="Memory, such as 256m (limit memory_bytes).")] = None,
    pids: Annotated[int | None, typer.Option(min=1, help="Processes and threads (limit pids).")] = None,
    env: Annotated[list[str] | None, typer.Option("--env", metavar="NAME=VALUE", help="Environment variable.")] = None,
    url: Annotated[str | None, typer.Option(help="Run it on this service; else SANDFORK_URL, else right here.")] = None,
    config: ConfigFile = None,
    reduced: Annotated[
        bool | None, typer.Option("--reduced", help="Run it right here without namespaces, where they cannot be had.")
    ] = None,
    tier: Annotated[str, typer.Option(hidden=True)] = "process",
) -> None:
    """Run a program in a sandbox; the exit status is the program's, 124 when its time was over."""
    words = args or []
    if code is not None and file is not None:
        # With -e every word is an argument of the program.
        words = [file, *words]
        file = None
    from_stdin = code is None and file in (None, PROGRAM_FROM_STDIN)
    text = code if code is not None else _read_program(file)
    request = ExecRequest(
        program=Snippet(language or _language_of(file, config), text),
        stdin=b"" if from_stdin else _read_stdin(),
        args=tuple(words),
        env=tuple(_variable(each) for each in env or ()),
        limits=LimitsOverride(wall_s=timeout, cpu_s=cpu, memory_bytes=_bytes(memory), pids=pids, cpus=cpus),
    )
    url, key = url or client_environment()[0], client_environment()[1]
    raise typer.Exit(
        _run_there(request, url, key) if url else _run_here(request, settings(config, process__reduced=reduced), tier)
    )


def _run_here(request: ExecRequest, loaded: Loaded, tier: str) -> int:
    from sandfork.serve_local import run_local  # the whole service, which a run elsewhere does not need

    result = run_local(loaded, tier, request)
    return _tell(result.outcome, result.status, result.signal, result.truncated, result.failed_step)


def _run_there(request: ExecRequest, url: str, key: str | None) -> int:
    from sandfork.cli_remote import run_remote  # an HTTP client, which a run right here does not need

    reply = run_remote(request, url, key)
    failed_step = reply.get("failed_step", "")
    return _tell(reply["outcome"], reply["exit_code"], reply["signal"], reply["truncated"], failed_step)


def _tell(outcome: str, status: int, signal: int | None, truncated: bool, failed_step: str) -> int:
    """Say what the output does not; return the exit status of this command."""
    if failed_step:
        err.print(f"sandfork: not run: its first step, {failed_step}, failed", markup=False)
    if outcome not in ("exited", "signalled"):
        err.print(f"sandfork: stopped: {outcome}", markup=False)
    elif signal is not None:
        err.print(f"sandfork: ended by signal {signal}", markup=False)
    if truncated:
        err.print("sandfork: output beyond limits.output_bytes was cut", markup=False)
    return TIMED_OUT if outcome == "timed_out" else status


def _read_program(file: str | None) -> str:
    if file in (None, PROGRAM_FROM_STDIN):
        if sys.stdin.isatty():
            err.print("sandfork: reading the program from the terminal; Ctrl-D ends it", markup=False)
        raw, where = sys.stdin.buffer.read(), "stdin"
    else:
        assert file is not None
        where = file
        try:
            raw = Path(file).read_bytes()
        except OSError as error:
            raise Refused(f"{file}: {error.strerror}", status=2) from None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Refused(f"{where}: is not UTF-8 text", status=2) from None


def _read_stdin() -> bytes:
    """Return what the program shall read; a terminal is left alone."""
    return b"" if sys.stdin is None or sys.stdin.isatty() else sys.stdin.buffer.read()


def _language_of(file: str | None, config: Path | None) -> str:
    """Return the language of a file's extension, python where it has none.

    *Raises* Refused for an extension that is unknown, or that several languages have and none takes.
    """
    suffix = Path(file or "").suffix
    if not suffix:
        return "python"
    catalogue = load_catalogue(settings(config).config)
    found = catalogue.with_extension(suffix)
    if len(found) == 1:
        return found[0].name
    if found:
        names = " and ".join(language.name for language in found)
        raise Refused(f"{file}: {names} have the extension {suffix}: name one with --language", status=2)
    known = ", ".join(sorted({language.extension for language in catalogue.languages()}))
    raise Refused(f"{file}: no language has the extension {suffix}, only {known}: name one with --language", status=2)


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals:
        raise Refused(f"--env {text}: expected NAME=VALUE", status=2)
    return name, value


def _bytes(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return parse_size(text)
    except Unfit as error:
        raise Refused(f"--memory: {error}", status=2) from None
