"""`sandfork lang`: the languages of the catalogue: which there are, installing, proving and drafting them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from sandfork.cli_terms import ConfigFile, err, out, print_plain, settings
from sandfork.images.rooted import Rooted
from sandfork.languages.catalogue import Catalogue, Language
from sandfork.languages.draft import draft_language
from sandfork.languages.language import Packages
from sandfork.serve_refusal import Refused

if TYPE_CHECKING:
    from sandfork.serve_proofs import Proof

app = typer.Typer(no_args_is_help=True, help="Show, install, prove and draft languages.")

Names = Annotated[list[str] | None, typer.Argument(metavar="NAME...", help="Languages, by name or alias.")]


@app.command("list")
def list_(
    config: ConfigFile = None,
    only_names: Annotated[bool, typer.Option("--names", help="Print the names of installed ones only.")] = False,
) -> None:
    """List the languages of the catalogue and what is missing for those that are not installed."""
    from sandfork.serve_images import chosen_images, exists_on

    loaded, languages = settings(config).config, _catalogue(config).languages()
    images = chosen_images(loaded)
    missing = {each.name: each.missing(exists_on(loaded, images)(each.name)) for each in languages}
    if only_names:
        for each in languages:
            if not missing[each.name]:
                print_plain(each.name)
        return
    table = Table(
        "language", "aliases", "file", "installed", "image", "", box=None, pad_edge=False, header_style="bold"
    )
    for each in languages:
        lacking, image = missing[each.name], images.get(each.name)
        state = "[yellow]no[/]" if lacking else "[green]yes[/]"
        wanted = f"sandfork lang install {each.name}" if lacking and _named(each.packages) else " ".join(lacking)
        on = f"{image.name} {image.digest[:19]}" if image else ""
        table.add_row(each.name, " ".join(each.aliases), each.extension, state, escape(on), escape(wanted))
    out.print(table)


@app.command()
def info(name: Annotated[str, typer.Argument(help="A language, by name or alias.")], config: ConfigFile = None) -> None:
    """Show what the catalogue says of one language."""
    from sandfork.serve_images import chosen_images, exists_on, reference

    loaded, catalogue = settings(config).config, _catalogue(config)
    language = _find(catalogue, name)
    images = chosen_images(loaded)
    missing = language.missing(exists_on(loaded, images)(language.name))
    rows = {
        "name": language.name,
        "aliases": " ".join(language.aliases),
        "extension": language.extension + _others(catalogue, language),
        "file": language.file_name,
        "compile": " ".join(language.compile.argv) if language.compile else "",
        "image": reference(images[language.name]) if language.name in images else "",
        "warm cache": _warm_state(config, language),
        "run": " ".join(language.argv),
        "templates": " ".join(f"{spec.key} ({spec.kind})" for spec in language.templates),
        "packages": _named(language.packages),
        "installed": f"no: there is no {', '.join(missing)}" if missing else "yes",
        "checks": " ".join(check.name for check in language.checks),
        **{f"no {check}": reason for check, reason in language.without},
    }
    table = Table("", "", box=None, pad_edge=False, show_header=False)
    for key, value in rows.items():
        if value:
            table.add_row(f"[bold]{key}[/]", escape(value))
    out.print(table)


@app.command()
def install(names: Names = None, config: ConfigFile = None) -> None:
    """Install what languages need, from Debian, npm and PyPI, as root."""
    from sandfork.serve_install import commands_for, run_command, tell_services  # what only this needs

    catalogue = _catalogue(config)
    languages = [_find(catalogue, name) for name in names or ()]
    if not languages:
        raise Refused("name the languages to install; `sandfork lang list` shows which there are", status=2)
    if os.geteuid() != 0:
        raise Refused("installing packages needs root")
    with _bar() as bar:
        for command in commands_for(languages):
            task = bar.add_task(escape(command.what), total=100.0, now="")
            run_command(command, partial(_show, bar, task))
            bar.update(task, completed=100.0, now="")
    tell_services()
    for each in languages:
        if missing := each.missing(Rooted().has):
            raise Refused(f"{each.name}: its packages are installed, and still there is no {', '.join(missing)}")
    _fill(config, [each for each in _offered(config).languages() if each.name in {one.name for one in languages}])
    err.print(f"Installed {', '.join(each.name for each in languages)}. A running service takes them within a second.")


@app.command()
def warm(
    names: Names = None,
    again: Annotated[bool, typer.Option("--again", help="Also fill those anew that fit.")] = False,
    config: ConfigFile = None,
    tier: Annotated[str, typer.Option(hidden=True)] = "process",
) -> None:
    """Fill the warm caches of languages, all that are installed if none is named, where none fits the toolchain."""
    offered = _offered(config)
    chosen = list(offered.languages())
    if names:
        wanted = {_find(_catalogue(config), name).name for name in names}
        chosen = [each for each in chosen if each.name in wanted]
        for name in sorted(wanted - {each.name for each in chosen}):
            raise Refused(f"{name} is not installed: try `sandfork lang install {name}`")
        for each in chosen:
            if each.warm is None:
                raise Refused(f"{each.name} has no warm cache: its file has no [warm]")
    filled, failed = _fill(config, chosen, again=again, tier=tier)
    if not filled:
        err.print("There is nothing to fill: every warm cache fits its toolchain.")
    if failed:
        raise typer.Exit(1)


@app.command("test")
def prove(
    names: Names = None,
    image: Annotated[
        bool | None, typer.Option("--image/--host", help="Prove them on their images only, or on the host's own files.")
    ] = None,
    runs: Annotated[int, typer.Option(min=0, help="Measure each so many times beside its bare toolchain.")] = 0,
    page: Annotated[bool, typer.Option("--page", help="Print the page of the documentation.")] = False,
    config: ConfigFile = None,
    tier: Annotated[str, typer.Option(hidden=True)] = "process",
) -> None:
    """Prove languages, all that are there if none is named: run their checks in real sandboxes.

    Each is proven where a service would run it, on its image or else on the host's own files, if nothing else is said.
    """
    from sandfork.serve_local import run_privately  # the whole service, which `--help` does not need
    from sandfork.serve_proofs import choose_proven, prove_all

    loaded = settings(config)
    loaded, chosen = choose_proven(loaded, names or (), image)
    if (runs or page) and (on_images := [each.name for each in chosen.languages() if each.image]):
        raise Refused(f"times and the page are of the host's own toolchains: {', '.join(on_images)} would need --host")
    with _bar() as bar:
        total = sum(len(each.checks) + bool(runs) for each in chosen.languages())
        task = bar.add_task("proving", total=total, now="")

        def tell(language: str, check: str) -> None:
            bar.update(task, advance=1, now=f"{language}: {check}")

        proofs = run_privately(loaded, tier, chosen, lambda engine: prove_all(engine, chosen.languages(), runs, tell))
    _report(proofs, page=page)


@app.command()
def new(
    name: Annotated[str, typer.Argument(help="What the language is called.")],
    directory: Annotated[Path, typer.Option(help="Where to put the file.")] = Path(),
) -> None:
    """Draft the file of a new language, to be filled in."""
    path = directory / f"{name}.toml"
    if Catalogue.load().find(name) is not None:
        raise Refused(f"there is a language {name} already")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(draft_language(name))
    except OSError as error:
        raise Refused(f"{path}: {error.strerror}") from None
    err.print(f"Wrote {path}: fill it in, put it into languages.directory, then `sandfork lang test {name}`.")


def _catalogue(config: Path | None) -> Catalogue:
    from sandfork.serve_languages import load_catalogue

    return load_catalogue(settings(config).config)


def _offered(config: Path | None) -> Catalogue:
    """Return what a service would offer."""
    from sandfork.serve_engine import choose_languages

    return choose_languages(settings(config).config)


def _fill(
    config: Path | None, languages: Sequence[Language], *, again: bool = False, tier: str = "process"
) -> tuple[int, int]:
    """Fill the warm caches of languages where none fits; return how many those were, and how many failed."""
    from sandfork.errors import SandforkError
    from sandfork.serve_caches import find_cache
    from sandfork.serve_warm import make_cache

    loaded, failed = settings(config), 0
    wanted = [each for each in languages if each.warm and (again or find_cache(loaded.config, each)[0] is None)]
    for each in wanted:
        err.print(f"{each.name}: filling its warm cache")
        try:
            made = make_cache(loaded, tier, each)
        except (SandforkError, Refused) as error:
            failed += 1
            err.print(f"{each.name}: no warm cache, so it is slower: {error}", markup=False, style="red")
        else:
            err.print(f"{each.name}: {made.tree_bytes / 1e6:.1f} MB, {made.digest[:19]}")
    return len(wanted), failed


def _warm_state(config: Path | None, language: Language) -> str:
    """Say what a language's warm cache is, nothing for a language that has none."""
    from sandfork.serve_caches import find_cache

    offered = _offered(config).find(language.name) if language.warm else None
    if offered is None:
        return ""
    found, reason = find_cache(settings(config).config, offered)
    if found is None:
        return f"no: {reason}; `sandfork lang warm {language.name}` fills it, and makes it faster"
    return f"{found.tree_bytes / 1e6:.1f} MB of {found.created}, {found.digest[:19]}"


def _find(catalogue: Catalogue, name: str) -> Language:
    from sandfork.serve_languages import find_language

    return find_language(catalogue, name)


def _named(packages: Packages) -> str:
    parts = (("debian", packages.debian), ("npm", packages.npm), ("pypi", packages.pypi), _files_of(packages))
    return "; ".join(f"{registry}: {' '.join(names)}" for registry, names in parts if names)


def _files_of(packages: Packages) -> tuple[str, Sequence[str]]:
    return "pypi", [name.partition(" ")[0] for name in packages.pypi_files]


def _others(catalogue: Catalogue, language: Language) -> str:
    """Say who else has a language's extension, and what a file of it is then taken for."""
    others = [each.name for each in catalogue.languages() if each.extension == language.extension and each != language]
    if not others:
        return ""
    found = catalogue.with_extension(language.extension)
    taken = f"a file of it is taken for {found[0].name}" if len(found) == 1 else "name the language of such a file"
    return f" (as {', '.join(others)}: {taken})"


def _bar() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("{task.fields[now]}"))
    return Progress(*columns, console=err, transient=True)


def _show(bar: Progress, task: TaskID, percent: float, now: str) -> None:
    bar.update(task, completed=percent, now=escape(now))


def _report(proofs: list[Proof], *, page: bool) -> None:
    """Print the table, then what went wrong; exit status 1 when anything did."""
    from sandfork.serve_pages import proof_page, proof_table

    if page:
        print_plain(proof_page(proofs))
    else:
        head, *rows = proof_table(proofs)
        table = Table(*head, box=None, pad_edge=False, header_style="bold")
        for row in rows:
            table.add_row(*(escape(cell) for cell in row))
        out.print(table)
    failed = [(proof, check, problem) for proof in proofs for check, problem in proof.problems]
    for proof, check, problem in failed:
        err.print(f"{proof.language.name}: {check}: {problem}", markup=False, style="red")
    if failed:
        raise typer.Exit(1)
