"""Images and snapshots as callers see them: what is there, what is being made, and having more made.

Making one is a job: it goes on when its client is gone, is told in the lists while it lasts, and who asks for the same
name meanwhile joins it. One that failed is told, with the reason, until the name is made or removed. What makes and
keeps them is somebody else (`Maker`): this process may not. Closing ends what is under way.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from sandfork.errors import (
    Draining,
    Forbidden,
    InvalidRequest,
    LanguageGone,
    NotSupported,
    Overloaded,
    SandforkError,
    SnapshotNotFound,
    UnknownLanguage,
)
from sandfork.images.naming import check_name
from sandfork.images.progress import Tell
from sandfork.images.state import ImageState, Kind, Making, RootfsState, SnapshotState, Status
from sandfork.languages.catalogue import Catalogue, Language
from sandfork.model import Caller, Command, ExecRequest, LimitsOverride

log = logging.getLogger(__name__)

VERSION_S = 30.0


@dataclass(frozen=True, slots=True)
class ImageBounds:
    """The most that callers may ask for; `rootfs` says whether they may have images made and removed at all.

    Of what could not be made the last `failed` are told.
    """

    size_mb: int = 16_384
    mem_mb: int = 2048
    vcpus: int = 1
    snapshots: int = 256
    under_way: int = 16
    failed: int = 64
    rootfs: bool = True


class Maker(Protocol):
    """Makes, keeps and removes. Its methods *Raise* SandforkError, and are ended by cancellation."""

    def unable(self) -> str:
        """Say why no image can be made here; "" where one can."""
        ...

    async def build(self, language: str, size_mb: int, tell: Tell) -> None:
        """Make the image of a language. Cancelled it returns once nothing is left of what was made."""
        ...

    async def snapshot(self, name: str, language: str, mem_mb: int, vcpus: int, toolchain: str) -> None:
        """Keep a snapshot."""
        ...

    async def remove(self, kind: Kind, name: str) -> None:
        """Take a name away. *Raises* SnapshotNotFound, ImageNotFound."""
        ...


class Shelf(Protocol):
    """Knows what is there: on this machine, or in the bucket (in a thread, for that is far away)."""

    def local(self, kind: Kind) -> Sequence[ImageState]:
        """Return what this machine has."""
        ...

    async def remote(self, kind: Kind) -> Sequence[ImageState]:
        """Return what the bucket has. *Raises* NotSupported when there is none."""
        ...


@dataclass(slots=True)
class _Job:
    """Something that is being made or failed; `state` is what is told of it where nothing else is there."""

    state: ImageState
    task: asyncio.Task[None] | None = None


class ImageDesk:
    """The jobs of a server, over what is there."""

    def __init__(
        self,
        catalogue: Catalogue,
        shelf: Shelf,
        maker: Maker,
        execute: Callable[[ExecRequest, Caller], Awaitable[Any]],
        bounds: ImageBounds | None = None,
        every: Catalogue | None = None,
        changed: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`catalogue` has the languages on offer, `every` those of which there can be an image.

        `changed` is called when an image was made or removed; what it does is done before that is told.
        """
        self._changed = changed
        self._catalogue = catalogue
        self._ever = set(_names(catalogue))  # those that were on offer at some time
        self._every = every or catalogue
        self._shelf = shelf
        self._maker = maker
        self._execute = execute
        self._bounds = bounds or ImageBounds()
        self._jobs: dict[tuple[Kind, str], _Job] = {}
        self._closed = False

    def adopt(self, catalogue: Catalogue) -> None:
        """Have these languages on offer from now on."""
        self._catalogue = catalogue
        self._ever.update(_names(catalogue))

    async def list(self, kind: Kind, *, remote: bool = False) -> Sequence[ImageState]:
        """Return all by name; with those of this machine those that are being made, or could not be."""
        if remote:
            return await self._shelf.remote(kind)
        there = {state.name: state for state in self._shelf.local(kind)}
        for (of, name), job in self._jobs.items():
            if of is kind:
                there[name] = replace(there.get(name, job.state), making=job.state.making)
        return [there[name] for name in sorted(there)]

    async def read(self, kind: Kind, name: str) -> ImageState:
        """Return one. *Raises* SnapshotNotFound."""
        for state in await self.list(kind):
            if state.name == name:
                return state
        raise _not_there(kind, name)

    async def remove(self, kind: Kind, name: str) -> None:
        """Take a name away; what is being made of that name is given up. *Raises* SnapshotNotFound, Forbidden."""
        self._refuse_forbidden(kind)
        job = self._jobs.pop((kind, name), None)
        if job is not None and job.task is not None:
            job.task.cancel()
            await asyncio.wait((job.task,))
        if any(state.name == name for state in self._shelf.local(kind)):
            await self._maker.remove(kind, name)
            await self._tell_change(kind)
        elif job is None:
            raise _not_there(kind, name)

    def build(self, language: str, size_mb: int) -> bool:
        """Have the image of a language made; return False when it is being made already.

        *Raises* UnknownLanguage, InvalidRequest, Forbidden, Overloaded, NotSupported.
        """
        found = _language(self._every, language)
        self._refuse_forbidden(Kind.ROOTFS)
        _check("size_mb", size_mb, 16, self._bounds.size_mb)
        if unable := self._maker.unable():
            raise NotSupported(unable)
        state = RootfsState(found.name, (found.name,), making=Making(Status.BUILDING, 0))

        async def make(tell: Tell) -> None:
            await self._maker.build(found.name, size_mb, tell)
            await self._tell_change(Kind.ROOTFS)

        return self._begin(Kind.ROOTFS, state, make)

    def snapshot(self, name: str, language: str, mem_mb: int, vcpus: int) -> bool:
        """Have a snapshot made; return False when it is being made already.

        *Raises* UnknownLanguage, LanguageGone, InvalidRequest, Forbidden, Overloaded.
        """
        found = _language(self._catalogue, language, self._ever)
        name = check_name(name or found.name)
        _check("mem_mb", mem_mb, 8, self._bounds.mem_mb)
        _check("vcpus", vcpus, 1, self._bounds.vcpus)
        there = {state.name for state in self._shelf.local(Kind.SNAPSHOT)}
        if name not in there and len(there) >= self._bounds.snapshots:
            raise Forbidden(f"name: there are {self._bounds.snapshots} snapshots, the server's ceiling; remove one")
        state = SnapshotState(name, found.name, mem_bytes=mem_mb << 20, vcpus=vcpus, making=Making(Status.BUILDING, 0))

        async def make(tell: Tell) -> None:
            toolchain = await self._version(found, mem_mb)
            tell(50, "keeping")
            await self._maker.snapshot(name, found.name, mem_mb, vcpus, toolchain)

        return self._begin(Kind.SNAPSHOT, state, make)

    async def settled(self, kind: Kind, name: str) -> ImageState:
        """Return one as it is once it is not being made any more. *Raises* SnapshotNotFound."""
        job = self._jobs.get((kind, name))
        if job is not None and job.task is not None:
            await asyncio.wait((job.task,))
        return await self.read(kind, name)

    async def close(self) -> None:
        """End what is under way; who asked for it will not find it."""
        self._closed = True
        tasks = [job.task for job in self._jobs.values() if job.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._jobs.clear()

    async def _tell_change(self, kind: Kind) -> None:
        if kind is Kind.ROOTFS and self._changed is not None:
            await self._changed()

    def _refuse_forbidden(self, kind: Kind) -> None:
        if kind is Kind.ROOTFS and not self._bounds.rootfs:
            raise Forbidden("rootfs: callers may not have images made and removed on this server (images.build)")

    def _begin(self, kind: Kind, state: ImageState, make: Callable[[Tell], Awaitable[None]]) -> bool:
        """Begin a job and return True; where one of that name is under way, leave it at that."""
        if self._closed:
            raise Draining("the server is shutting down")
        key = kind, state.name
        if key in self._jobs and self._jobs[key].task is not None:
            return False
        if sum(job.task is not None for job in self._jobs.values()) >= self._bounds.under_way:
            raise Overloaded("too many images and snapshots are being made", retry_after_s=30.0)
        job = self._jobs[key] = _Job(state)
        job.task = asyncio.get_running_loop().create_task(self._run(key, job, make))
        return True

    async def _run(self, key: tuple[Kind, str], job: _Job, make: Callable[[Tell], Awaitable[None]]) -> None:
        def tell(percent: float, now: str) -> None:
            job.state = replace(job.state, making=Making(Status.BUILDING, min(99, int(percent)), now=now))

        try:
            await make(tell)
        except SandforkError as error:
            self._fail(job, error.message)
        except Exception:
            log.exception("making %s %s failed", *key)
            self._fail(job, "internal error")
        else:
            if self._jobs.get(key) is job:
                del self._jobs[key]
        finally:
            job.task = None

    def _fail(self, job: _Job, why: str) -> None:
        log.warning("could not make %s: %s", job.state.name, why)
        job.state = replace(job.state, making=Making(Status.FAILED, job.state.making.percent, why))
        failed = [key for key, each in self._jobs.items() if each.state.making.status is Status.FAILED]
        for key in failed[: -self._bounds.failed]:
            del self._jobs[key]

    async def _version(self, language: Language, mem_mb: int) -> str:
        """Run what tells the toolchain's version, as a program under the snapshot's own memory; it must end well."""
        if not language.version_argv:
            return ""
        limits = LimitsOverride(wall_s=VERSION_S, memory_bytes=mem_mb << 20)
        command = ExecRequest(Command(language.version_argv), template=language.commands.key, limits=limits)
        result = await self._execute(command, Caller("images"))
        if result.status != 0:
            said = (result.stderr or result.stdout)[-200:].decode("utf-8", "replace").strip()
            raise NotSupported(
                f"{language.name} does not start with {mem_mb} MB: {result.outcome}, status {result.status}: {said}"
            )
        line = (result.stdout or result.stderr).decode("utf-8", "replace").strip().partition("\n")[0]
        return "".join(character for character in line if character.isprintable())[:64]


def _language(catalogue: Catalogue, name: str, ever: Collection[str] = ()) -> Language:
    found = catalogue.find(name)
    if found is None:
        raise LanguageGone(name) if name in ever else UnknownLanguage(name, catalogue.names())
    return found


def _names(catalogue: Catalogue) -> Sequence[str]:
    """Return all names of all languages."""
    return [name for each in catalogue.languages() for name in (each.name, *each.aliases)]


def _check(field: str, value: int, least: int, most: int) -> None:
    if value < least:
        raise InvalidRequest(field, f"must be at least {least}")
    if value > most:
        raise Forbidden(f"{field}: {value} is above the server's ceiling of {most}")


def _not_there(kind: Kind, name: str) -> SandforkError:
    return SnapshotNotFound(f"there is no {kind} {name[:64]!r}")
