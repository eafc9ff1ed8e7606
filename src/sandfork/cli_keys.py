"""`sandfork keys`: make, list and revoke API keys. The file holds their SHA-256, never the keys.

The file is the one of `access.keys_file`; entries of other forms that `sandfork.access` reads are kept as they are.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from sandfork.access import MalformedKeys, parse_keys
from sandfork.cli_terms import ConfigFile, err, out, print_plain, settings
from sandfork.serve_refusal import Refused

KEY_PREFIX = "sf_live_"
KEY_BYTES = 32

app = typer.Typer(no_args_is_help=True, help="Make, list and revoke API keys.")


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="What the key is called in lists, logs and metrics.")],
    rate: Annotated[float | None, typer.Option(min=0.001, help="Executions a second, instead of the server's.")] = None,
    config: ConfigFile = None,
) -> None:
    """Make a key and print it, this once."""
    path = _keys_file(config)
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    entry: dict[str, Any] = {"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest()}
    if rate is not None:
        entry["rate_per_s"] = rate
    with _locked(path):
        document = _read(path)
        if name in _names(document, path):
            raise Refused(f"{path} has a key named {name} already: revoke it first, or choose another name")
        _write(path, [*document, entry])
    print_plain(key)
    err.print(f"Added to {path}; it is shown only now. A running service reads the file when it starts.", markup=False)


@app.command("list")
def list_(config: ConfigFile = None) -> None:
    """List the keys by name; the keys themselves are not known."""
    path = _keys_file(config)
    if not path.exists():
        err.print(f"{path} does not exist: the service needs no key.", markup=False)
        return
    table = Table("name", "sha256", "rate/s", "ceilings", box=None, pad_edge=False, header_style="bold")
    document = _read(path)
    for entry, raw in zip(_parse(document, path), document, strict=True):
        ceilings = raw.get("ceilings", {}) if isinstance(raw, dict) else {}
        shown = " ".join(f"{limit}={value}" for limit, value in ceilings.items())
        rate = "" if entry.rate_per_s is None else f"{entry.rate_per_s:g}"
        table.add_row(entry.name, entry.sha256.hex()[:16], rate, shown)
    out.print(table)


@app.command()
def revoke(
    name: Annotated[str, typer.Argument(help="The key's name as `sandfork keys list` shows it.")],
    config: ConfigFile = None,
) -> None:
    """Take a key out of the file."""
    path = _keys_file(config)
    with _locked(path):
        document = _read(path)
        names = _names(document, path)
        if name not in names:
            raise Refused(f"{path} has no key named {name}; it has {', '.join(names) or 'none'}")
        document = [item for item, each in zip(document, names, strict=True) if each != name]
        _write(path, document)
    err.print(f"Revoked {name}. A running service lets it in until it is restarted.", markup=False)
    if not document:
        err.print("No key is left, and the service refuses to start so: make one, or remove the file to serve openly.")


def _keys_file(config: Path | None) -> Path:
    return Path(settings(config).config.access.keys_file)


def _read(path: Path) -> list[Any]:
    """Return the entries as they stand in the file; none when there is no file. *Raises* Refused."""
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        return []
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from None
    except ValueError:
        raise Refused(f"{path} is not valid JSON") from None
    if not isinstance(document, list):
        raise Refused(f"{path} must hold a JSON list of keys")
    return document


def _parse(document: list[Any], path: Path) -> tuple[Any, ...]:
    # An emptied file is no valid ring for a server, but new keys may be put into it.
    if not document:
        return ()
    try:
        return parse_keys(json.dumps(document).encode(), str(path))
    except MalformedKeys as error:
        raise Refused(str(error)) from None


def _names(document: list[Any], path: Path) -> list[str]:
    return [entry.name for entry in _parse(document, path)]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold the lock of the file's directory, so that two commands at once lose no key. *Raises* Refused."""
    try:
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    except OSError as error:
        raise Refused(f"{path.parent}: {error.strerror}") from None
    try:
        fcntl.flock(directory, fcntl.LOCK_EX)
        yield
    finally:
        os.close(directory)


def _write(path: Path, document: list[Any]) -> None:
    """Replace the file, readable to its owner only; a reader sees the old list or the new one."""
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(json.dumps(document, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        fresh.replace(path)
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from None
