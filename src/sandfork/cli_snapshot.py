"""`sandfork snapshot`: named templates of a language: making, listing, removing them, and moving them to a bucket."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sandfork.cli_terms import ConfigFile, err, out, settings

if TYPE_CHECKING:
    from sandfork.images.remote import Remote
    from sandfork.images.snapshots import SnapshotStore

app = typer.Typer(no_args_is_help=True, help="Make, show, remove, push and pull snapshots.")

Name = Annotated[str, typer.Argument(help="The snapshot.")]


@app.command("list")
def list_(
    config: ConfigFile = None,
    remote: Annotated[bool, typer.Option("--remote", help="Those of the bucket.")] = False,
) -> None:
    """List the snapshots of this machine, or of the bucket."""
    from sandfork.images.state import Kind, SnapshotState
    from sandfork.serve_remote import open_remote, remote_states
    from sandfork.serve_shelf import DiskShelf, images_directory

    loaded = settings(config).config
    if remote:
        states = remote_states(open_remote(loaded), Kind.SNAPSHOT)
    else:
        states = DiskShelf(loaded, images_directory(loaded)).local(Kind.SNAPSHOT)
    table = Table("snapshot", "language", "memory", "cpus", "made", "of", "", box=None, pad_edge=False)
    for each in states:
        assert isinstance(each, SnapshotState)
        made = f"{each.created} ({each.revision})" if each.revision else ""
        cells = (each.name, each.language, f"{each.mem_bytes >> 20} MiB", str(each.vcpus), made, each.toolchain)
        table.add_row(*(escape(cell) for cell in cells), f"[red]{escape(each.making.error)}[/]")
    out.print(table)


@app.command()
def create(
    language: Annotated[str, typer.Argument(help="A language, by name or alias.")],
    name: Annotated[str, typer.Option(help="What to call it; its language if not given.")] = "",
    mem_mb: Annotated[int, typer.Option(min=8, help="The memory of its sandboxes, in MiB.")] = 512,
    vcpus: Annotated[int, typer.Option(min=1, help="The processors of its sandboxes.")] = 1,
    config: ConfigFile = None,
    tier: Annotated[str, typer.Option(hidden=True)] = "process",
) -> None:
    """Make a snapshot of a language as it is on this machine; its toolchain is started once in a sandbox."""
    from sandfork.serve_shelf import create_snapshot

    made = create_snapshot(settings(config), tier, name, language, mem_mb, vcpus)
    err.print(f"Made {made.name} (revision {made.revision}) of {made.toolchain or made.language}.", markup=False)


@app.command()
def remove(name: Name, config: ConfigFile = None) -> None:
    """Remove a snapshot of this machine."""
    _store(config).remove(name)
    err.print(f"Removed {name}.", markup=False)


@app.command()
def push(name: Name, config: ConfigFile = None) -> None:
    """Put a snapshot into the bucket."""
    from sandfork.serve_remote import push_snapshot

    remote = _remote(config)
    push_snapshot(_store(config), remote, name)
    err.print(f"Pushed {name} to {remote.place}.", markup=False)


@app.command()
def pull(name: Name, config: ConfigFile = None) -> None:
    """Fetch a snapshot from the bucket; it can be used where its toolchain is the same."""
    from sandfork.serve_remote import pull_snapshot

    remote = _remote(config)
    pulled = pull_snapshot(_store(config), remote, name)
    err.print(f"Pulled {name} (revision {pulled.revision}) from {remote.place}.", markup=False)


def _remote(config: Path | None) -> Remote:
    from sandfork.serve_remote import open_remote

    return open_remote(settings(config).config)


def _store(config: Path | None) -> SnapshotStore:
    from sandfork.images.snapshots import SnapshotStore
    from sandfork.serve_shelf import images_directory

    return SnapshotStore(images_directory(settings(config).config))
