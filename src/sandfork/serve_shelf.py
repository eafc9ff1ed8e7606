"""From settings to images and snapshots: where they are, what is there, who makes them.

The server may write none of it. It asks the *builder*, a process that was started before root was given up and takes
nothing but names of the catalogue and numbers (`serve_builder`).
"""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TypeVar

from sandfork.config import Config, Loaded
from sandfork.engine.engine import Engine
from sandfork.engine.images import ImageBounds, ImageDesk, Maker
from sandfork.engine.recall import Recall
from sandfork.errors import ImageError, SandforkError
from sandfork.images.snapshots import Snapshot, SnapshotStore
from sandfork.images.state import LOCAL, ImageState, Kind, Making, RootfsState, SnapshotState, Status
from sandfork.images.store import Store
from sandfork.languages.catalogue import Catalogue
from sandfork.serve_builder import start_builder
from sandfork.serve_engine import choose_languages, maximum_limits
from sandfork.serve_images import open_store, with_store
from sandfork.serve_languages import find_language, load_catalogue
from sandfork.serve_local import run_privately
from sandfork.serve_remote import open_remote, remote_states, rootfs_state, snapshot_state

T = TypeVar("T")


def images_directory(config: Config) -> Path:
    """Return where images and snapshots are."""
    return open_store(config).root


class DiskShelf:
    """What this machine's directory holds, and the configured bucket."""

    def __init__(self, config: Config, root: Path) -> None:
        self._config = config
        self._snapshots = SnapshotStore(root)
        self._images = Store(root)
        self._asked: dict[Kind, asyncio.Task[Sequence[ImageState]]] = {}

    def local(self, kind: Kind) -> Sequence[ImageState]:
        """Return what is there; a document that is none is told as failed."""
        if kind is Kind.ROOTFS:
            return [self._image(name) for name in self._images.names()]
        return [self._snapshot(name) for name in self._snapshots.names()]

    async def remote(self, kind: Kind) -> Sequence[ImageState]:
        """Return what the bucket holds. *Raises* NotSupported, RemoteFailed.

        Whoever asks while the bucket is being read gets what that comes to: it may be slow, and costs a thread.
        """
        remote = open_remote(self._config, hurried=True)
        asked = self._asked.get(kind)
        if asked is None or asked.done():
            asked = asyncio.create_task(in_thread(lambda: remote_states(remote, kind)))
            self._asked[kind] = asked
        return await asyncio.shield(asked)

    def _image(self, name: str) -> RootfsState:
        try:
            manifest = self._images.get(name)
            return rootfs_state(manifest, str(self._images.blob(manifest.digest)))
        except ImageError as error:
            return RootfsState(name, (), making=Making(Status.FAILED, 0, error.message))

    def _snapshot(self, name: str) -> SnapshotState:
        try:
            document_bytes = len(self._snapshots.document(name))
            return snapshot_state(self._snapshots.get(name), document_bytes, LOCAL)
        except SandforkError as error:
            return SnapshotState(name, "", making=Making(Status.FAILED, 0, error.message))


def keep_images(
    config: Config,
    catalogue: Catalogue,
    engine: Engine,
    maker: Maker,
    root: Path,
    changed: Callable[[], Awaitable[None]] | None = None,
) -> ImageDesk:
    """Give an engine its images and snapshots; `changed` is called when there are other images."""
    bounds = ImageBounds(
        size_mb=config.images.max_size_mb,
        mem_mb=config.limits.maximum.memory_bytes >> 20,
        vcpus=len(os.sched_getaffinity(0)),
        snapshots=config.images.max_snapshots,
        rootfs=config.images.build,
    )
    every = load_catalogue(config)
    desk = ImageDesk(catalogue, DiskShelf(config, root), maker, engine.execute, bounds, every, changed)
    recall = Recall(catalogue, SnapshotStore(root).get, maximum_limits(config).cpus)
    engine.keep_images(desk, recall)
    return desk


def create_snapshot(loaded: Loaded, tier: str, name: str, language: str, mem_mb: int, vcpus: int) -> Snapshot:
    """Make a snapshot without a service; its toolchain is started in a sandbox. *Raises* SandforkError."""
    config = with_store(loaded.config)
    root = images_directory(config)
    logging.getLogger(ImageDesk.__module__).setLevel(logging.ERROR)  # a failure is raised here, once
    catalogue = choose_languages(config)
    name = name or find_language(catalogue, language).name
    builder = start_builder(config, root)

    async def work(engine: Engine) -> ImageState:
        builder.attach(asyncio.get_running_loop())
        try:
            desk = keep_images(config, catalogue, engine, builder, root)
            desk.snapshot(name, language, mem_mb, vcpus)
            return await desk.settled(Kind.SNAPSHOT, name)
        finally:
            await builder.close()

    made = run_privately(loaded, tier, catalogue, work)
    if made.making.status is not Status.READY:
        raise ImageError(made.making.error)
    return SnapshotStore(root).get(name)


async def in_thread(work: Callable[[], T]) -> T:
    """Return what `work` does in a thread that the end of the process does not wait for: it may wait for a network."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: Exception | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(result)  # type: ignore[arg-type]  # without an error there is a result
        else:
            done.set_exception(error)

    def run() -> None:
        try:
            result, failed = work(), None
        except Exception as error:
            result, failed = None, error
        if not loop.is_closed():
            loop.call_soon_threadsafe(settle, result, failed)

    threading.Thread(target=run, name="images", daemon=True).start()
    return await done
