"""Which language runs on which image: those of the store that are for it, by the configuration's leave."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from sandfork.config import Config
from sandfork.errors import ImageCorrupt
from sandfork.images.building import Wanted
from sandfork.images.manifest import Manifest
from sandfork.images.rooted import Rooted
from sandfork.images.store import Lease, Store
from sandfork.languages.catalogue import Catalogue, Language


def open_store(config: Config) -> Store:
    """Return the store of images, which may not be made yet."""
    if config.images.directory:
        return Store(Path(config.images.directory).resolve())
    home = Path("/var/lib/sandfork") if os.geteuid() == 0 else Path("~/.local/share/sandfork").expanduser()
    return Store(home / "images")


def with_store(config: Config) -> Config:
    """Return the settings with the store's directory spelt out: the usual one is another once root is given up."""
    return replace(config, images=replace(config.images, directory=str(open_store(config).root)))


def reference(manifest: Manifest) -> str:
    """Return what names an image and its content: NAME@DIGEST."""
    return f"{manifest.name}@{manifest.digest}"


def chosen_images(config: Config) -> Mapping[str, Manifest]:
    """Return the image of each language that runs on one: that of its own name, else the first. *Raises* ImageError."""
    host = languages_on_host(config)
    return {} if host is None else images_of(open_store(config), host)


def languages_on_host(config: Config) -> tuple[str, ...] | None:
    """Return the languages that run on the host's files whatever images there are; None: all."""
    return config.images.host if config.images.use and not config.process.reduced else None


def images_of(store: Store, host: Collection[str]) -> Mapping[str, Manifest]:
    """Return the image of each language that has one in a store, but for those in `host`. *Raises* ImageError."""
    chosen: dict[str, Manifest] = {}
    for manifest in store.list():
        for language in manifest.languages:
            if language not in host and (language not in chosen or manifest.name == language):
                chosen[language] = manifest
    return chosen


def wanted_for(languages: Sequence[Language]) -> Wanted:
    """Return what a build installs for these languages."""
    return Wanted(
        tuple(sorted({package for each in languages for package in each.packages.debian})),
        tuple((each.name, each.packages.npm) for each in languages if each.packages.npm),
        tuple((each.name, each.packages.pypi) for each in languages if each.packages.pypi),
        tuple((each.name, each.packages.pypi_files) for each in languages if each.packages.pypi_files),
    )


def image_sizes(config: Config) -> Mapping[str, int]:
    """Return what is stored of the images that languages run on, in bytes. *Raises* ImageError."""
    return {reference(manifest): manifest.size for manifest in chosen_images(config).values()}


def exists_on(config: Config, chosen: Mapping[str, Manifest]) -> Callable[[str], Callable[[str], bool]]:
    """Return what returns, by the name of a language, what tells whether a path or a pattern is there for it:
    on its image, or on the host. *Raises* ImageError.
    """
    store = open_store(config)
    trees = {name: Rooted(str(store.tree(manifest))) for name, manifest in chosen.items()}
    return lambda language: trees.get(language, Rooted()).has


def hold_images(config: Config, catalogue: Catalogue) -> Mapping[str, Lease]:
    """Hold the images that the templates of a catalogue name, so that none is collected. *Raises* ImageError."""
    store, held = open_store(config), {}
    try:
        for image in sorted({spec.image for spec in catalogue.templates()} - {""}):
            held[image] = store.lease(image.partition("@")[0])
            if reference(held[image].manifest) != image:
                raise ImageCorrupt(f"image {image} was replaced at this moment: try again")
    except BaseException:
        for lease in held.values():
            lease.close()
        raise
    return held
