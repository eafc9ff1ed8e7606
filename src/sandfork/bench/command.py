"""`sandfork bench`: the command line of the benchmark."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console

from sandfork.bench.report import print_table, write_json, write_markdown
from sandfork.bench.sections import QUICK, Sizes
from sandfork.bench.service import own_command
from sandfork.bench.suite import SECTIONS, Choice, Suite
from sandfork.bench.wire import Address


def main(argv: Sequence[str] | None = None) -> int:
    """Run the benchmark; return 0, or 1 when a row misses its reach or a measurement broke.

    *Raises* SystemExit(2) for a wrong command line.
    """
    arguments = parser().parse_args(argv)
    console = Console(stderr=True)
    report = Suite(choice_from(arguments), console).run()
    print_table(report, Console(width=None if sys.stdout.isatty() else 160))
    for path, write in ((arguments.json, write_json), (arguments.markdown, write_markdown)):
        if path is not None:
            write(report, path)
            console.print(f"written: {path}", style="dim", markup=False)
    return 0 if report.holds or arguments.no_fail else 1


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    parser = argparse.ArgumentParser(prog="sandfork bench", description="Measure a service beside a bare interpreter.")
    parser.add_argument(
        "--quick", action="store_true", help="a minute instead of six; fewer samples than the reaches ask"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write everything to FILE as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the table to FILE as Markdown")
    parser.add_argument("--url", type=address_of, help="measure a running service (its rate limits must allow it)")
    parser.add_argument("--command", metavar="CMD", help="what starts the service; gets --port N --config FILE")
    parser.add_argument("--jails", action="store_true", help="beside bubblewrap, nsjail and runc, where they run")
    parser.add_argument("--nsjail", type=Path, metavar="FILE", help="the nsjail binary")
    parser.add_argument("--packages", type=Path, metavar="DIR", help="where bare python finds numpy")
    parser.add_argument("--soak", type=int, default=0, metavar="N", help="compare memory after N executions with 1,000")
    parser.add_argument("--only", action="append", default=[], choices=SECTIONS, help="only this section (repeatable)")
    parser.add_argument("--no-fail", action="store_true", help="exit 0 whatever was found")
    return parser


def choice_from(arguments: argparse.Namespace) -> Choice:
    """Return what the arguments ask for."""
    sizes = QUICK if arguments.quick else Sizes()
    return Choice(
        sizes=dataclasses.replace(sizes, soak=arguments.soak),
        command=tuple(shlex.split(arguments.command)) if arguments.command else own_command(),
        address=arguments.url,
        jails=arguments.jails or arguments.nsjail is not None,
        nsjail=arguments.nsjail,
        packages=arguments.packages or guest_packages(),
        only=frozenset(arguments.only),
        quick=arguments.quick,
    )


def address_of(url: str) -> Address:
    """Return where a plain HTTP URL points. *Raises* ArgumentTypeError."""
    parts = urlsplit(url if "//" in url else f"http://{url}")
    if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/"):
        raise argparse.ArgumentTypeError(f"{url} is not http://HOST:PORT")
    return Address(parts.hostname, parts.port or 80)


def guest_packages() -> Path | None:
    """Return the directory of packages for sandboxes that `./dev` puts beside the source, if it is there."""
    beside = Path(__file__).resolve().parents[2] / "guest"
    return beside if beside.is_dir() else None
