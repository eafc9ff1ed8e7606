"""The builder: the one process besides the janitor that keeps root, to make and keep images and snapshots.

It is started before the server gives root up, as pid 1 of a pid namespace where there may be one, so that everything
that it starts ends with it; and it ends when the server does, for then its socket closes. Over that socket it takes
JSON of at most 4 KiB: names of languages in the catalogue that it read itself, names of a form that is no path, numbers
in range, one line that a toolchain told of its version. Never a path, never a command. It checks what it is asked,
and keeps no more snapshots than the settings allow, for the server may not be the one that it was when it started.

    server   {"id": 7, "do": "snapshot", "name": "warm", "language": "python", "mem_mb": 512, "vcpus": 1, ...}
    builder  {"id": 7, "percent": 40, "now": "unpacking"}      any number of these
             {"id": 7, "done": true}                           or {"id": 7, "error": "…", "code": "…"}
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from sandfork.config import Config
from sandfork.engine.images import Tell
from sandfork.errors import (
    Forbidden,
    ImageError,
    InvalidRequest,
    NotSupported,
    SandforkError,
    SnapshotConflict,
    SnapshotNotFound,
)
from sandfork.images.rooted import Rooted
from sandfork.images.snapshots import Snapshot, SnapshotStore, pin
from sandfork.images.state import Kind
from sandfork.languages.catalogue import BUILT_IN, Catalogue, Language
from sandfork.linux.privileges import PR_SET_DUMPABLE, prctl

log = logging.getLogger(__name__)

MAX_MESSAGE = 4096
MAX_REPORT = 16 << 10  # an error has up to 2000 characters, each of up to six bytes in JSON
NOT_BUILT_HERE = "rootfs images are not built over HTTP by this version: make them with `sandfork rootfs build`"
ISOLATED = ("unshare", "--pid", "--fork", "--kill-child=KILL", "--mount", "--mount-proc", "--ipc", "--")
_ERRORS: dict[str, type[SandforkError]] = {
    each.code: each for each in (Forbidden, ImageError, NotSupported, SnapshotConflict, SnapshotNotFound)
}


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the server asks for."""

    id: int
    do: Literal["build", "snapshot", "remove"]
    language: str = ""
    name: str = ""
    kind: Kind = Kind.SNAPSHOT
    size_mb: int = 0
    mem_mb: int = 0
    vcpus: int = 0
    toolchain: str = ""


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the builder tells of an order: how far it is, that it is done, or why it failed."""

    id: int
    percent: float | None = None
    now: str = ""
    done: bool = False
    error: str | None = None
    code: str = ""


class BuilderSettings(msgspec.Struct, frozen=True):
    """What the builder is told at its start, by whoever is root: the only paths that it is ever given."""

    root: str
    languages: str = ""
    max_snapshots: int = 0


class Builder:
    """The server's end: a `Maker`."""

    def __init__(self, process: subprocess.Popen[bytes], end: socket.socket) -> None:
        self._process = process
        self._socket = end
        self._socket.setblocking(False)
        self._waiting: dict[int, tuple[asyncio.Future[None], Tell]] = {}
        self._last = 0

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take reports in that event loop from now on."""
        loop.add_reader(self._socket.fileno(), self._take)

    async def build(self, language: str, size_mb: int, tell: Tell) -> None:
        """Have the image of a language made. *Raises* ImageError."""
        await self._ask(Order(self._number(), "build", language=language, size_mb=size_mb), tell)

    async def snapshot(self, name: str, language: str, mem_mb: int, vcpus: int, toolchain: str) -> None:
        """Have a snapshot kept. *Raises* ImageError."""
        order = Order(
            self._number(), "snapshot", language=language, name=name, mem_mb=mem_mb, vcpus=vcpus, toolchain=toolchain
        )
        await self._ask(order, lambda percent, now: None)

    async def remove(self, kind: Kind, name: str) -> None:
        """Have a name taken away. *Raises* SnapshotNotFound, ImageError."""
        await self._ask(Order(self._number(), "remove", kind=kind, name=name), lambda percent, now: None)

    async def close(self) -> None:
        """End the builder and whatever it is doing."""
        asyncio.get_running_loop().remove_reader(self._socket.fileno())
        self._lose("was ended")
        self._socket.close()
        await asyncio.to_thread(self._process.wait)

    def _number(self) -> int:
        self._last += 1
        return self._last

    async def _ask(self, order: Order, tell: Tell) -> None:
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[order.id] = done, tell
        try:
            self._socket.send(msgspec.json.encode(order))
            await done
        except OSError as error:
            raise ImageError(f"the process that makes images is gone ({error.strerror}); restart the service") from None
        finally:
            self._waiting.pop(order.id, None)

    def _take(self) -> None:
        try:
            message = self._socket.recv(MAX_REPORT)
        except BlockingIOError:
            return
        except OSError:
            message = b""
        if not message:
            log.error("the process that makes images ended")
            asyncio.get_running_loop().remove_reader(self._socket.fileno())
            self._lose("ended; restart the service")
            return
        try:
            report = msgspec.json.decode(message, type=Report)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            log.error("the process that makes images made no sense: %s", error)
            self._lose("made no sense; see the log")
            return
        done, tell = self._waiting.get(report.id, (None, None))
        if done is None or done.done() or tell is None:
            return
        if report.error is not None:
            done.set_exception(_ERRORS.get(report.code, ImageError)(report.error))
        elif report.done:
            done.set_result(None)
        elif report.percent is not None:
            tell(report.percent, report.now)

    def _lose(self, why: str) -> None:
        """Nobody knows any more for whom what comes next would be: all that wait have failed."""
        for done, _ in self._waiting.values():
            if not done.done():
                done.set_exception(ImageError(f"the process that makes images {why}"))


def start_builder(config: Config, root: Path) -> Builder:
    """Start the builder, as root where this is root. *Raises* OSError."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        settings = BuilderSettings(str(root.absolute()), config.languages.directory, config.images.max_snapshots)
        source = str(Path(__file__).resolve().parents[1])
        # The first word of sys.path is taken away by -I; what remains is what this process itself was started from.
        code = f"import sys; sys.path.insert(0, {source!r}); from sandfork.serve_builder import main; main()"
        argv = [*_isolated(), sys.executable, "-I", "-c", code, str(theirs.fileno())]
        argv.append(msgspec.json.encode(settings).decode())
        process = subprocess.Popen(
            argv,
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            cwd="/",
            env={"PATH": os.defpath},
            start_new_session=True,  # a Ctrl-C is the server's to take; the builder ends with it
        )
    return Builder(process, ours)


def _isolated() -> Sequence[str]:
    """Return the words that start a command in namespaces of its own, where this host lets us."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return ()
    done = subprocess.run([*ISOLATED, "true"], capture_output=True, check=False)
    if done.returncode == 0:
        return ISOLATED
    log.warning("the process that makes images has no namespaces of its own here: %s", done.stderr.decode().strip())
    return ()


def main() -> None:
    """Be the builder: arguments are the descriptor of the socket and the settings."""
    prctl(PR_SET_DUMPABLE, 0)
    with socket.socket(fileno=int(sys.argv[1])) as end:
        workshop = Workshop(msgspec.json.decode(sys.argv[2], type=BuilderSettings), end)
        while message := end.recv(MAX_MESSAGE):
            workshop.take(message)
    os._exit(0)  # whatever still goes on ends here, with this process


class Workshop:
    """The builder's end: takes orders, one after another."""

    def __init__(self, settings: BuilderSettings, end: socket.socket) -> None:
        self._socket = end
        directories = [Path(settings.languages)] if settings.languages else []
        self._catalogue = Catalogue.load(BUILT_IN, *directories)
        self._snapshots = SnapshotStore(Path(settings.root))
        self._max_snapshots = settings.max_snapshots

    def take(self, message: bytes) -> None:
        """Do what a message asks for and tell what came of it."""
        try:
            order = msgspec.json.decode(message, type=Order)
        except msgspec.DecodeError:
            return  # nobody to answer: the server sends no such thing
        try:
            self._do(order, lambda percent, now: self._tell(Report(order.id, percent=percent, now=now[:200])))
        except SandforkError as error:
            self._tell(Report(order.id, error=error.message[:2000], code=error.code))
        except OSError as error:
            self._tell(Report(order.id, error=f"{error.filename}: {error.strerror}"[:2000], code=ImageError.code))
        else:
            self._tell(Report(order.id, done=True))

    def _tell(self, report: Report) -> None:
        self._socket.send(msgspec.json.encode(report))

    def _do(self, order: Order, tell: Callable[[float, str], Any]) -> None:
        if order.do == "snapshot":
            self._make_room(order.name)
            self._snapshots.put(make_snapshot(self._snapshots, self._language(order.language), order))
        elif order.do == "remove" and order.kind is Kind.SNAPSHOT:
            self._snapshots.remove(order.name)
        else:
            raise NotSupported(NOT_BUILT_HERE)

    def _make_room(self, name: str) -> None:
        """*Raises* Forbidden where one more snapshot would be one too many."""
        there = self._snapshots.names()
        if name not in there and len(there) >= self._max_snapshots:
            raise Forbidden(f"name: there are {len(there)} snapshots, the server's ceiling; remove one")

    def _language(self, name: str) -> Language:
        found = self._catalogue.find(name)
        if found is None:
            raise InvalidRequest("language", "is not in the catalogue")
        return found


def make_snapshot(store: SnapshotStore, language: Language, order: Order) -> Snapshot:
    """Return a snapshot of what the language is on this machine now. *Raises* InvalidRequest, OSError."""
    try:
        revision = store.get(order.name).revision + 1
    except (SnapshotNotFound, SnapshotConflict):
        revision = 1
    template = language.templates[0]
    snapshot = Snapshot(
        name=order.name,
        language=language.name,
        template=template.key,
        mem_mb=order.mem_mb,
        vcpus=order.vcpus,
        created=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        revision=revision,
        toolchain=order.toolchain,
        preload=template.preload,
        pins=pin(_paths(language)),
    )
    try:
        return msgspec.convert(msgspec.to_builtins(snapshot), Snapshot)
    except msgspec.ValidationError as error:
        raise InvalidRequest("snapshot", str(error)) from None


def _paths(language: Language) -> list[str]:
    """Return the paths of what a language needs; a pattern that nothing matches stays, and is no file to pin."""
    found = [tuple(Rooted().matching(pattern)) or (pattern,) for pattern in language.programs]
    return [path for paths in found for path in paths]
