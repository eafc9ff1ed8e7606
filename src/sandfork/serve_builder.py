"""The builder: the one process besides the janitor that keeps root, to make and keep images and snapshots.

It is started before the server gives root up, as pid 1 of a pid namespace where there may be one, so that everything
that it starts ends with it; and it ends when the server does, for then its socket closes. Over that socket it takes
JSON of at most 4 KiB: names of languages in the catalogue that it read itself, names of a form that is no path, numbers
in range, one line that a toolchain told of its version. Never a path, never a command. It checks what it is asked,
and keeps no more snapshots than the settings allow, for the server may not be the one that it was when it started.

    server   {"id": 7, "do": "build", "language": "python", "size_mb": 1024}
    builder  {"id": 7, "percent": 40, "now": "unpacking"}      any number of these
             {"id": 7, "done": true}                           or {"id": 7, "error": "…", "code": "…"}
    server   {"id": 8, "do": "cancel", "of": 7}                is done once nothing is left of the build

This is the server's end, and the words of both; `serve_workshop` is the builder's.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal

import msgspec

from sandfork.config import Config
from sandfork.errors import (
    Forbidden,
    ImageError,
    NotSupported,
    SandforkError,
    SnapshotConflict,
    SnapshotNotFound,
)
from sandfork.images.building import what_a_build_lacks
from sandfork.images.progress import Tell, tell_nobody
from sandfork.images.state import Kind
from sandfork.serve_images import languages_on_host

log = logging.getLogger(__name__)

MAX_MESSAGE = 4096
MAX_REPORT = 16 << 10  # an error has up to 2000 characters, each of up to six bytes in JSON
ISOLATED = ("unshare", "--pid", "--fork", "--kill-child=KILL", "--mount", "--mount-proc", "--ipc", "--")
_ERRORS: dict[str, type[SandforkError]] = {
    each.code: each for each in (Forbidden, ImageError, NotSupported, SnapshotConflict, SnapshotNotFound)
}


class Order(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the server asks for."""

    id: int
    do: Literal["build", "snapshot", "remove", "collect", "cancel"]
    language: str = ""
    name: str = ""
    kind: Kind = Kind.SNAPSHOT
    size_mb: int = 0
    mem_mb: int = 0
    vcpus: int = 0
    toolchain: str = ""
    of: int = 0


class Report(msgspec.Struct, frozen=True, omit_defaults=True):
    """What the builder tells of an order: how far it is, that it is done, or why it failed."""

    id: int
    percent: float | None = None
    now: str = ""
    done: bool = False
    error: str | None = None
    code: str = ""


class BuilderSettings(msgspec.Struct, frozen=True):
    """What the builder is told at its start, by whoever is root: the only paths that it is ever given.

    `host` are the languages that run on the host's files although there is an image for them; None: all.
    """

    root: str
    languages: str = ""
    max_snapshots: int = 0
    max_size_mb: int = 0
    host: tuple[str, ...] | None = ()


class Builder:
    """The server's end: a `Maker`."""

    def __init__(self, process: subprocess.Popen[bytes], end: socket.socket, unable: str | None = None) -> None:
        """`unable` says why the process can build nothing, whatever gets installed; None: it may."""
        self._process = process
        self._unable = unable
        self._socket = end
        self._socket.setblocking(False)
        self._waiting: dict[int, tuple[asyncio.Future[None], Tell]] = {}
        self._last = 0

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Take reports in that event loop from now on."""
        loop.add_reader(self._socket.fileno(), self._take)

    def unable(self) -> str:
        """Say why no image can be built; "" where one can."""
        return what_a_build_lacks(root=True) if self._unable is None else self._unable

    async def build(self, language: str, size_mb: int, tell: Tell) -> None:
        """Have the image of a language made; cancelled, return once nothing is left of it. *Raises* ImageError."""
        order = Order(self._number(), "build", language=language, size_mb=size_mb)
        try:
            await self._ask(order, tell)
        except asyncio.CancelledError:
            with suppress(ImageError):  # a builder that is gone has taken the build with it
                await self._ask(Order(self._number(), "cancel", of=order.id), tell_nobody)
            raise

    async def snapshot(self, name: str, language: str, mem_mb: int, vcpus: int, toolchain: str) -> None:
        """Have a snapshot kept. *Raises* ImageError."""
        order = Order(
            self._number(), "snapshot", language=language, name=name, mem_mb=mem_mb, vcpus=vcpus, toolchain=toolchain
        )
        await self._ask(order, tell_nobody)

    async def remove(self, kind: Kind, name: str) -> None:
        """Have a name taken away. *Raises* SnapshotNotFound, ImageError."""
        await self._ask(Order(self._number(), "remove", kind=kind, name=name), tell_nobody)

    async def collect(self) -> None:
        """Have the content removed that no image names and nobody holds. *Raises* ImageError."""
        await self._ask(Order(self._number(), "collect"), tell_nobody)

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
        images = config.images
        settings = BuilderSettings(
            str(root.absolute()),
            config.languages.directory,
            images.max_snapshots,
            images.max_size_mb if images.build else 0,
            languages_on_host(config),
        )
        source = str(Path(__file__).resolve().parents[1])
        # The first word of sys.path is taken away by -I; what remains is what this process itself was started from.
        code = f"import sys; sys.path.insert(0, {source!r}); from sandfork.serve_workshop import main; main()"
        isolated = _isolated()
        argv = [*isolated, sys.executable, "-I", "-c", code, str(theirs.fileno())]
        argv.append(msgspec.json.encode(settings).decode())
        process = subprocess.Popen(
            argv,
            pass_fds=(theirs.fileno(),),
            stdin=subprocess.DEVNULL,
            cwd="/",
            env={"PATH": os.defpath},
            start_new_session=True,  # a Ctrl-C is the server's to take; the builder ends with it
        )
    return Builder(process, ours, _why_unable(isolated))


def _why_unable(isolated: Sequence[str]) -> str | None:
    if os.geteuid() != 0:
        return what_a_build_lacks(root=False)
    return None if isolated else "images cannot be built over HTTP here: this host grants no namespaces for it"


def _isolated() -> Sequence[str]:
    """Return the words that start a command in namespaces of its own, where this host lets us."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return ()
    done = subprocess.run([*ISOLATED, "true"], capture_output=True, check=False)
    if done.returncode == 0:
        return ISOLATED
    log.warning("the process that makes images has no namespaces of its own here: %s", done.stderr.decode().strip())
    return ()
