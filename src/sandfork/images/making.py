"""Make an image and publish it: build or import, pack, describe, adopt. What fails leaves the store as it was."""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sandfork.errors import ArchiveRefused, BuildFailed
from sandfork.images.archive import Bounds, ByteStream
from sandfork.images.building import (
    EPOCH,
    Wanted,
    apt_sources,
    build_tree,
    distribution_of,
    installed_packages,
    what_a_build_lacks,
)
from sandfork.images.durable import is_full
from sandfork.images.manifest import SET_ID_MAX, Manifest, Package, Source
from sandfork.images.naming import check_name, digest_of
from sandfork.images.oci import import_oci
from sandfork.images.packing import pack
from sandfork.images.progress import Tell, tell_nobody
from sandfork.images.sbom import spdx
from sandfork.images.store import Store
from sandfork.images.tree import tree_writer


def build_image(
    store: Store, name: str, languages: Sequence[str], wanted: Wanted, bounds: Bounds, tell: Tell
) -> Manifest:
    """Build an image of packages. *Raises* BuildFailed, ArchiveRefused when it is too large, StoreUnusable."""
    check_name(name)
    if lacking := what_a_build_lacks(root=os.geteuid() == 0):
        raise BuildFailed(lacking)
    sources = apt_sources()
    with store.work(name) as work:
        since = _now().timestamp()
        build_tree(wanted, sources, work / "tree", since, bounds, tell)
        found = tuple(Package(*each) for each in installed_packages(work / "tree", wanted))
        source = Source("build", sources.suite, _asked(wanted), sources.lines)
        return _publish(store, work, name, languages, source, found, bounds, tell, since)


def import_image(
    store: Store, name: str, languages: Sequence[str], export: Path, bounds: Bounds, tell: Tell
) -> Manifest:
    """Make an image of an OCI layout or a docker-save archive. *Raises* ArchiveRefused, StoreUnusable."""
    check_name(name)
    with store.work(name) as work, _told(export):
        (work / "tree").mkdir()
        set_id = import_oci(export, work, work / "tree", bounds, tell)
        source = Source("oci", origin=(export.name,))
        return _publish(store, work, name, languages, source, (), bounds, tell, set_id=set_id)


def import_directory(
    store: Store, name: str, languages: Sequence[str], tree: Path, bounds: Bounds, tell: Tell
) -> Manifest:
    """Make an image of a directory that is a root file system. *Raises* ArchiveRefused, StoreUnusable."""
    check_name(name)
    with store.work(name) as work, _told(tree):
        if not any(os.path.isdir(tree / part) for part in ("usr", "bin")):
            raise ArchiveRefused("there is no usr and no bin in it: this is no root file system")
        (work / "tree").symlink_to(tree.resolve())
        return _publish(store, work, name, languages, Source("directory", origin=(tree.name,)), (), bounds, tell)


def import_stream(
    store: Store, name: str, stream: ByteStream, confirm: Callable[[], None], key: str, bounds: Bounds
) -> Manifest:
    """Make a warm cache of the tar that comes out of a sandbox. *Raises* ArchiveRefused, StoreUnusable.

    `confirm` is called when it has ended, whole or not, and raises when whoever wrote it says that it is not good.
    """
    check_name(name)
    with store.work() as work:
        (work / "tree").mkdir()
        try:
            with tree_writer(str(work / "tree")) as writer:
                writer.extract(stream, bounds)
        except ArchiveRefused:
            confirm()
            raise
        confirm()
        return _publish(store, work, name, (), Source("warm", origin=(key,)), (), bounds, tell_nobody)


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Say of what is imported, in one line, why it cannot be read or is not taken. *Raises* ArchiveRefused."""
    if not os.access(path, os.R_OK):
        raise ArchiveRefused(f"{path} is not there, or cannot be read")
    try:
        yield
    except ArchiveRefused as error:
        raise ArchiveRefused(f"{path}: {error.message}") from None
    except OSError as error:
        if is_full(error):
            raise  # it is the store that has no room
        raise ArchiveRefused(f"{path}: {error.strerror}") from None


def _publish(
    store: Store,
    work: Path,
    name: str,
    languages: Sequence[str],
    source: Source,
    packages: tuple[Package, ...],
    bounds: Bounds,
    tell: Tell,
    since: float | None = None,
    set_id: Sequence[str] = (),
) -> Manifest:
    tree = (work / "tree").resolve()
    packed = pack(tree, work / "made", bounds, _share(tell, 70.0, 85.0), written_since=since, epoch=EPOCH)
    created = _now().strftime("%Y-%m-%dT%H:%M:%SZ")
    bill = spdx(name, packed.digest, distribution_of(tree), "2000-01-01T00:00:00Z", packages) if packages else b""
    manifest = Manifest(
        name, tuple(languages), packed.digest, packed.size, packed.tree_bytes, created, source, packages,
        digest_of(bill) if bill else "", tuple(ascii(each)[1:-1] for each in (*set_id, *packed.set_id))[:SET_ID_MAX],
    )  # fmt: skip
    return store.adopt(manifest, work / "made", bill, bounds=bounds, tell=_share(tell, 85.0, 100.0))


def _share(tell: Tell, low: float, high: float) -> Tell:
    return lambda percent, now: tell(low + (high - low) * percent / 100, now)


def _asked(wanted: Wanted) -> tuple[str, ...]:
    registries = (("npm", wanted.npm), ("pypi", wanted.pypi), ("pypi", wanted.pypi_files))
    beside = (f"{registry}:{name}" for registry, asked in registries for _, names in asked for name in names)
    return (*wanted.debian, *beside)


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
