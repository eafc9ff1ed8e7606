"""Images and snapshots kept in memory, made when a test says so, over the real desk and the real recall."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any

from sandfork.engine.images import ImageBounds, ImageDesk
from sandfork.engine.recall import Recall
from sandfork.errors import NotSupported, SandforkError, SnapshotNotFound
from sandfork.images.progress import Tell
from sandfork.images.snapshots import Snapshot, encode_snapshot
from sandfork.images.state import LOCAL, ImageState, Kind, RootfsState
from sandfork.languages.catalogue import Catalogue
from sandfork.model import Caller, ExecRequest
from sandfork.serve_remote import snapshot_state

CREATED = "2026-01-02T03:04:05Z"


class MemoryImages:
    """A `Maker` and a `Shelf`. `go` lets what is being made end, with `failure` if that is set."""

    def __init__(self) -> None:
        self.rootfs: dict[str, RootfsState] = {}
        self.snapshots: dict[str, Snapshot] = {}
        self.bucket: dict[Kind, Sequence[ImageState]] | None = None
        self.go = asyncio.Event()
        self.go.set()
        self.failure: SandforkError | None = None
        self.tell: Tell | None = None
        self.built: list[tuple[str, int]] = []
        self.ended_early = 0
        self.lacking = ""

    def unable(self) -> str:
        return self.lacking

    async def build(self, language: str, size_mb: int, tell: Tell) -> None:
        self.built.append((language, size_mb))
        self.tell = tell
        await self._made()
        state = RootfsState(language, (language,), 1_288_490_188, f"/images/{language}", digest="sha256:0")
        self.rootfs[language] = replace(state, created=CREATED)

    async def snapshot(self, name: str, language: str, mem_mb: int, vcpus: int, toolchain: str) -> None:
        await self._made()
        self.snapshots[name] = Snapshot(name, language, language, mem_mb, vcpus, CREATED, toolchain=toolchain)

    async def _made(self) -> None:
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.ended_early += 1
            raise
        if self.failure is not None:
            raise self.failure

    async def remove(self, kind: Kind, name: str) -> None:
        del (self.rootfs if kind is Kind.ROOTFS else self.snapshots)[name]

    def local(self, kind: Kind) -> Sequence[ImageState]:
        if kind is Kind.ROOTFS:
            return list(self.rootfs.values())
        return [snapshot_state(each, len(encode_snapshot(each)), LOCAL) for each in self.snapshots.values()]

    async def remote(self, kind: Kind) -> Sequence[ImageState]:
        if self.bucket is None:
            raise NotSupported("there is no bucket")
        return self.bucket[kind]

    def find(self, name: str) -> Snapshot:
        if name not in self.snapshots:
            raise SnapshotNotFound(f"there is no snapshot {name!r}")
        return self.snapshots[name]

    def desk(
        self, execute: Callable[[ExecRequest, Caller], Awaitable[Any]], bounds: ImageBounds | None = None
    ) -> ImageDesk:
        return ImageDesk(Catalogue.load(), self, self, execute, bounds)

    def recall(self, catalogue: Catalogue | None = None, most_cpus: float = math.inf) -> Recall:
        return Recall(catalogue or Catalogue.load(), self.find, most_cpus)
