"""`sandfork rootfs`: the images that sandboxes run on: building, importing, listing, removing them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sandfork.cli_bar import progress_bar
from sandfork.cli_terms import ConfigFile, err, out, print_plain, settings
from sandfork.errors import ImageCorrupt
from sandfork.languages.catalogue import Language
from sandfork.serve_languages import find_language, load_catalogue
from sandfork.serve_refusal import Refused

if TYPE_CHECKING:
    from sandfork.images.archive import Bounds
    from sandfork.images.manifest import Manifest
    from sandfork.images.progress import Tell
    from sandfork.images.store import Store

app = typer.Typer(no_args_is_help=True, help="Build, import, list and remove the images that sandboxes run on.")

Name = Annotated[str, typer.Argument(help="What the image is called.")]
Languages = Annotated[
    list[str] | None,
    typer.Option(
        "--language", "-l", help="A language to run on it; may be repeated. Else the one of the image's name."
    ),
]
ImportedName = Annotated[str, typer.Option("--name", help="What the image is called.")]
SizeMb = Annotated[int, typer.Option("--size-mb", min=1, max=1 << 20, help="The most that its files may hold.")]
DEFAULT_MB = 4096


@app.command()
def build(name: Name, language: Languages = None, size_mb: SizeMb = DEFAULT_MB, config: ConfigFile = None) -> None:
    """Build an image of Debian's kind, with what languages need, from this machine's apt sources. Needs root."""
    from sandfork.images.archive import Bounds
    from sandfork.images.making import build_image
    from sandfork.serve_images import wanted_for

    chosen = _languages(config, name, language, required=True)
    names, bounds = [each.name for each in chosen], Bounds(max_bytes=size_mb << 20)
    with progress_bar(f"building {name}") as tell:
        made = build_image(_store(config), name, names, wanted_for(chosen), bounds, tell)
    _report(config, made, chosen)


@app.command("from-oci")
def from_oci(
    path: Annotated[Path, typer.Argument(help="An OCI layout or what docker save made: a directory or a tar.")],
    name: ImportedName,
    language: Languages = None,
    size_mb: SizeMb = DEFAULT_MB,
    config: ConfigFile = None,
) -> None:
    """Import an image from other tools. Its layers are made one tree, without owners and set-uid bits."""
    from sandfork.images.making import import_image

    _import(import_image, path, name, language, size_mb, config)


@app.command("from-dir")
def from_dir(
    path: Annotated[Path, typer.Argument(help="A directory that is a root file system.")],
    name: ImportedName,
    language: Languages = None,
    size_mb: SizeMb = DEFAULT_MB,
    config: ConfigFile = None,
) -> None:
    """Import a directory."""
    from sandfork.images.making import import_directory

    _import(import_directory, path, name, language, size_mb, config)


@app.command("list")
def list_(
    config: ConfigFile = None,
    remote: Annotated[bool, typer.Option("--remote", help="Those of the bucket.")] = False,
) -> None:
    """List the images of the store and which languages run on them."""
    if remote:
        _list_remote(config)
        return
    table = Table(
        "name", "languages", "files", "stored", "created", "digest", box=None, pad_edge=False, header_style="bold"
    )
    store, damaged = _store(config), []
    for name in store.names():
        try:
            each = store.get(name)
        except ImageCorrupt as error:
            damaged.append(error.message)
            continue
        sizes = f"{each.tree_bytes / 1e6:.1f} MB", f"{each.size / 1e6:.1f} MB"
        table.add_row(each.name, " ".join(each.languages), *sizes, each.created, each.digest[:19])
    out.print(table)
    for why in damaged:
        err.print(f"sandfork: {why}", markup=False)
    if damaged:
        raise typer.Exit(1)


@app.command()
def show(
    name: Name,
    sbom: Annotated[bool, typer.Option("--sbom", help="Print the bill of materials, SPDX 2.3, instead.")] = False,
    config: ConfigFile = None,
) -> None:
    """Print the manifest of an image: its digest, where it is from, every package with its version."""
    from sandfork.images.manifest import encode_manifest

    store = _store(config)
    manifest = store.get(name)
    if not sbom:
        print_plain(encode_manifest(manifest).decode().rstrip())
    elif manifest.sbom:
        print_plain(store.blob(manifest.sbom).read_text())
    else:
        raise Refused(f"{name} was imported: there is no bill of materials of it")


@app.command()
def remove(names: Annotated[list[str], typer.Argument(metavar="NAME...")], config: ConfigFile = None) -> None:
    """Remove images, and their content once no service holds it."""
    store = _store(config)
    for name in names:
        store.remove(name)
    _collect(store)


@app.command()
def gc(config: ConfigFile = None) -> None:
    """Remove content that no image names and no service holds."""
    _collect(_store(config))


def _import(
    make: Callable[[Store, str, Sequence[str], Path, Bounds, Tell], Manifest],
    path: Path,
    name: str,
    language: list[str] | None,
    size_mb: int,
    config: Path | None,
) -> None:
    from sandfork.images.archive import Bounds

    chosen = _languages(config, name, language, required=False)
    with progress_bar(f"importing {name}") as tell:
        names = [each.name for each in chosen]
        made = make(_store(config), name, names, path, Bounds(max_bytes=size_mb << 20), tell)
    _report(config, made, chosen)


def _collect(store: Store) -> None:
    garbage = store.collect()
    err.print(f"Removed {len(garbage.digests)} unused, {garbage.bytes / 1e6:.1f} MB.")


def _store(config: Path | None) -> Store:
    from sandfork.serve_images import open_store

    return open_store(settings(config).config)


def _languages(config: Path | None, name: str, named: list[str] | None, *, required: bool) -> list[Language]:
    catalogue = load_catalogue(settings(config).config)
    if named:
        return [find_language(catalogue, each) for each in named]
    own = catalogue.find(name)
    if own is None and required:
        raise Refused(f"name the languages that {name!r} is for, such as --language python", status=2)
    return [own] if own else []


def _report(config: Path | None, made: Manifest, chosen: list[Language]) -> None:
    """Say what was made, and which of its languages it cannot run after all."""
    from sandfork.images.rooted import Rooted

    tree = Rooted(str(_store(config).tree(made)))
    for each in chosen:
        if missing := each.missing(tree.has):
            err.print(f"{each.name} cannot run on it: there is no {', '.join(missing)}", style="yellow", markup=False)
    if made.set_id:
        first = ", ".join(made.set_id[:5]) + (", …" if len(made.set_id) > 5 else "")
        err.print(
            f"{len(made.set_id)} files lost their set-uid or set-gid bits, which give nothing in a sandbox: {first}",
            style="yellow",
            markup=False,
        )
    files, stored = made.tree_bytes / 1e6, made.size / 1e6
    err.print(
        f"{made.name}: {files:.1f} MB of files, {stored:.1f} MB stored, {len(made.packages)} packages", markup=False
    )
    print_plain(made.digest)


def _list_remote(config: Path | None) -> None:
    from sandfork.images.state import Kind, RootfsState
    from sandfork.serve_remote import open_remote, remote_states

    table = Table("name", "languages", "stored", "created", "digest", "", box=None, pad_edge=False)
    for each in remote_states(open_remote(settings(config).config), Kind.ROOTFS):
        assert isinstance(each, RootfsState)
        size = f"{each.size_bytes / 1e6:.1f} MB"
        cells = (each.name, " ".join(each.languages), size, each.created, each.digest[:19])
        table.add_row(*(escape(cell) for cell in cells), f"[red]{escape(each.making.error)}[/]")
    out.print(table)


@app.command()
def push(name: Name, config: ConfigFile = None) -> None:
    """Put an image into the bucket; a push that broke off goes on where it was."""
    from sandfork.serve_remote import open_remote, push_image

    remote = open_remote(settings(config).config)
    with progress_bar(f"pushing {name}") as tell:
        push_image(_store(config), remote, name, tell)
    err.print(f"Pushed {name} to {remote.place}.", markup=False)


@app.command()
def pull(name: Name, config: ConfigFile = None) -> None:
    """Fetch an image from the bucket; a pull that broke off goes on where it was."""
    from sandfork.serve_remote import open_remote, pull_image

    loaded = settings(config).config
    remote = open_remote(loaded)
    with progress_bar(f"pulling {name}") as tell:
        pull_image(_store(config), remote, name, tell, loaded.images.max_size_mb << 20)
    err.print(f"Pulled {name} from {remote.place}.", markup=False)
