"""Warm caches: where they are kept, which fit the toolchains that are here, and where sandboxes see them.

They are kept as images are, in a store of their own below that of the images, each by its language's name and by its
digest. What a toolchain leaves in one is good for that toolchain only, so a cache is known by a *key*: of what its
language's file says, and of the image that the language runs on, or of the programs that the file names on the host.
"""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

from sandfork.config import Config
from sandfork.errors import ImageNotFound, SandforkError
from sandfork.images.manifest import Manifest
from sandfork.images.rooted import Rooted
from sandfork.images.store import Lease, Store
from sandfork.languages.catalogue import Catalogue, Language
from sandfork.serve_images import open_store
from sandfork.serve_refusal import Refused
from sandfork.tiers.process.plan import WARM_INSIDE

log = logging.getLogger(__name__)

WARM_DIR = ".warm"
"""What is filled, in the work directory of the sandbox that does; all that a cache holds is below that name."""


def cache_store(config: Config) -> Store:
    """Return the store of warm caches, which may not be made yet."""
    return Store(open_store(config).root / "warm")


def cache_key(config: Config, language: Language) -> str:
    """Return what tells the toolchain that a language has now from any other. *Raises* ImageNotFound, ImageCorrupt."""
    digest = hashlib.sha256()
    for part in (repr(language.warm), *_toolchain(config, language)):
        digest.update(part.encode())
        digest.update(b"\0")
    return digest.hexdigest()


def _toolchain(config: Config, language: Language) -> Iterator[str]:
    if language.image:
        yield language.image.partition("@")[2]
        return
    for pattern in language.programs:
        for path in Rooted().matching(pattern):
            real = os.path.realpath(path)
            try:
                status = os.stat(real)
            except OSError:
                yield f"{path} {real} is being replaced"
            else:
                yield f"{path} {real} {status.st_size} {status.st_mtime_ns}"


def find_cache(config: Config, language: Language) -> tuple[Manifest | None, str]:
    """Return a language's warm cache if it fits its toolchain, else None and why not."""
    try:
        found = cache_store(config).get(language.name)
        fits = found.source.origin == (cache_key(config, language),)
    except ImageNotFound:
        return None, "none was made"
    except SandforkError as error:
        return None, error.message
    return (found, "") if fits else (None, "the one there is was made by another toolchain")


def with_caches(config: Config, catalogue: Catalogue) -> Catalogue:
    """Return a catalogue whose languages use the warm caches that fit."""
    store = cache_store(config)

    def path_of(language: Language) -> str:
        found, _ = find_cache(config, language)
        if found is None:
            return ""
        tree = store.tree(found)
        # Without namespaces programs see the host's own files.
        return f"{tree}/{WARM_DIR}" if config.process.reduced else f"{WARM_INSIDE}/{tree.name}/{WARM_DIR}"

    return catalogue.warmed(path_of)


def hold_caches(config: Config, catalogue: Catalogue) -> Sequence[Lease]:
    """Hold the warm caches that languages use, so that none is collected. *Raises* Refused, ImageError."""
    store, held = cache_store(config), []
    with ExitStack() as undo:
        for language in catalogue.languages():
            if not language.warm_path:
                continue
            lease = undo.enter_context(store.lease(language.name))
            held.append(lease)
            if lease.tree.name not in language.warm_path:
                raise Refused(f"{language.name}: its warm cache was replaced a moment ago: start again")
        undo.pop_all()
    return held


def make_cache_store(config: Config) -> None:
    """Make the store of warm caches where there is none, so that caches that are filled later can be seen."""
    try:
        cache_store(config).make()
    except SandforkError as error:
        log.info("warm caches that are filled from now on are not used until the next start: %s", error.message)


def seen_caches(config: Config) -> Path | None:
    """Return the directory below which sandboxes see the warm caches, None where there is none."""
    trees = cache_store(config).root / "trees"
    return trees if trees.is_dir() else None


def cold_languages(catalogue: Catalogue) -> Sequence[str]:
    """Return the names of languages that could have a warm cache and have none."""
    return [each.name for each in catalogue.languages() if each.warm and not each.warm_path]


def tell_cold(names: Sequence[str]) -> None:
    """Log that languages are without a warm cache, if there are any."""
    if names:
        log.warning("no warm cache fits %s, which start slower: `sandfork lang warm` fills them", ", ".join(names))
