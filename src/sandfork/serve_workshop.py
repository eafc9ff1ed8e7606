"""The builder's end of its socket: snapshots and removals are done at once, builds one after another by a child.

A build is a process of its own, so that it can be ended at any moment, whatever it is doing: the child is killed, what
it started dies with it (`images.building`), all of that is reaped, for this process is the init of its pid namespace,
and what was made so far is removed. The end of the server does the same.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import sys
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from sandfork.errors import (
    BuildFailed,
    Forbidden,
    ImageError,
    InvalidRequest,
    SandforkError,
    SnapshotConflict,
    SnapshotNotFound,
)
from sandfork.images.archive import Bounds
from sandfork.images.making import build_image
from sandfork.images.manifest import Manifest
from sandfork.images.rooted import Rooted
from sandfork.images.snapshots import Snapshot, SnapshotStore, pin
from sandfork.images.state import Kind
from sandfork.images.store import Store
from sandfork.languages.catalogue import BUILT_IN, Catalogue, Language
from sandfork.linux.privileges import PR_SET_DUMPABLE, prctl
from sandfork.serve_builder import MAX_MESSAGE, BuilderSettings, Order, Report
from sandfork.serve_images import images_of, wanted_for

log = logging.getLogger(__name__)

#: The server asks for fewer; but it may not be the one that it was when it started.
MOST_WAITING = 64
#: Builds give way to sandboxes.
NICENESS = 10


def main() -> None:
    """Be the builder: arguments are the descriptor of the socket and the settings."""
    prctl(PR_SET_DUMPABLE, 0)
    with socket.socket(fileno=int(sys.argv[1])) as end:
        Workshop(msgspec.json.decode(sys.argv[2], type=BuilderSettings), end).work()
    os._exit(0)


@dataclass(frozen=True, slots=True)
class _Child:
    """The process of a build, and what tells of its end."""

    order: Order
    pid: int
    pidfd: int


class Workshop:
    """Takes orders until the server is gone."""

    def __init__(self, settings: BuilderSettings, end: socket.socket) -> None:
        self._socket = end
        directories = [Path(settings.languages)] if settings.languages else []
        self._catalogue = Catalogue.load(BUILT_IN, *directories)
        self._snapshots = SnapshotStore(Path(settings.root))
        self._images = Store(Path(settings.root))
        self._max_snapshots, self._max_size_mb = settings.max_snapshots, settings.max_size_mb
        self._host = settings.host
        self._waiting: deque[Order] = deque()
        self._child: _Child | None = None
        self._sweep()  # what a builder left that was killed itself

    def work(self) -> None:
        """Take orders and see builds end; when the server is gone, leave nothing of what is being made."""
        while True:
            watched = [self._socket.fileno(), *([self._child.pidfd] if self._child else [])]
            ready, _, _ = select.select(watched, [], [])
            if self._child is not None and self._child.pidfd in ready:
                self._build_ended(self._child)
            if self._socket.fileno() in ready:
                message = self._socket.recv(MAX_MESSAGE)
                if not message:
                    break
                self.take(message)
        if self._child is not None:
            self._end_child(self._child)

    def take(self, message: bytes) -> None:
        """Do what a message asks for and tell what came of it; a build goes on after this."""
        try:
            order = msgspec.json.decode(message, type=Order)
        except msgspec.DecodeError:
            return  # nobody to answer: the server sends no such thing
        if order.do == "build" and len(self._waiting) < MOST_WAITING:
            self._waiting.append(order)
            if self._child is not None:
                self._tell(Report(order.id, percent=0.0, now="waiting for another image"))
            self._build_next()
        else:
            self._answer(order, self._do)

    def _answer(self, order: Order, do: Callable[[Order], None]) -> None:
        """Do an order and tell what came of it."""
        try:
            do(order)
        except SandforkError as error:
            self._tell(Report(order.id, error=error.message[:2000], code=error.code))
        except OSError as error:
            self._tell(Report(order.id, error=f"{error.filename}: {error.strerror}"[:2000], code=ImageError.code))
        else:
            self._tell(Report(order.id, done=True))

    def _tell(self, report: Report) -> None:
        with suppress(BrokenPipeError, ConnectionResetError):  # the server is gone, which `work` finds out, too
            self._socket.send(msgspec.json.encode(report))

    def _do(self, order: Order) -> None:
        if order.do == "snapshot":
            self._make_room(order.name)
            language = self._language(order.language)
            images = {} if self._host is None else images_of(self._images, self._host)
            self._snapshots.put(make_snapshot(self._snapshots, language, images.get(language.name), order))
        elif order.do == "build":
            raise ImageError(f"{MOST_WAITING} images wait to be built, the most that may")
        elif order.do == "cancel":
            self._cancel(order.of)
        elif order.do == "collect":
            self._images.collect()
        elif order.kind is Kind.SNAPSHOT:
            self._snapshots.remove(order.name)
        elif not self._max_size_mb:
            raise Forbidden("rootfs: callers may not have images removed on this server (images.build)")
        else:
            self._images.remove(order.name)  # what it names is collected once nothing runs on it

    def _make_room(self, name: str) -> None:
        """*Raises* Forbidden where one more snapshot would be one too many."""
        there = self._snapshots.names()
        if name not in there and len(there) >= self._max_snapshots:
            raise Forbidden(f"name: there are {len(there)} snapshots, the server's ceiling; remove one")

    # --- builds ---

    def _build_next(self) -> None:
        """Begin the build that waits longest, unless there is one."""
        if self._child is not None or not self._waiting:
            return
        order = self._waiting.popleft()
        pid = os.fork()
        if pid == 0:
            self._be_child(order)
        self._child = _Child(order, pid, os.pidfd_open(pid))

    def _be_child(self, order: Order) -> None:
        """Build and tell; never return."""
        status = 1
        try:
            os.nice(NICENESS)
            self._answer(order, self._build)
            status = 0
        except Exception:
            log.exception("building an image of %s failed", order.language)
        finally:
            os._exit(status)

    def _build(self, order: Order) -> None:
        language = self._language(order.language)
        if not 0 < order.size_mb <= self._max_size_mb:
            raise Forbidden(f"size_mb: {order.size_mb} is above the server's ceiling of {self._max_size_mb}")

        def tell(percent: float, now: str) -> None:
            self._tell(Report(order.id, percent=percent, now=now[:200]))

        bounds = Bounds(max_bytes=order.size_mb << 20)
        build_image(self._images, language.name, (language.name,), wanted_for([language]), bounds, tell)

    def _build_ended(self, child: _Child) -> None:
        """Reap a build and begin the next; one that did not live to tell what came of it has that told here."""
        status = self._reap(child)
        if status:
            self._sweep()
            why = f"the build ended before it was done ({_ended_by(status)})"
            self._tell(Report(child.order.id, error=why, code=BuildFailed.code))
        self._build_next()

    def _cancel(self, number: int) -> None:
        """End a build, and leave nothing of it; one that is over is no error."""
        self._waiting = deque(order for order in self._waiting if order.id != number)
        if self._child is not None and self._child.order.id == number:
            self._end_child(self._child)
            self._build_next()

    def _end_child(self, child: _Child) -> None:
        os.kill(child.pid, signal.SIGKILL)
        self._reap(child)
        self._sweep()

    def _reap(self, child: _Child) -> int:
        """Wait until a build and all that it started are gone; return its status."""
        self._child = None
        os.close(child.pidfd)
        status = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
        if os.getpid() == 1:
            with suppress(ChildProcessError):
                while True:
                    os.waitpid(-1, 0)  # those whose parent it was are ours now
        return status

    def _sweep(self) -> None:
        try:
            self._images.sweep()
        except SandforkError as error:
            log.warning("what a build left cannot be removed: %s", error.message)

    def _language(self, name: str) -> Language:
        found = self._catalogue.find(name)
        if found is None:
            raise InvalidRequest("language", "is not in the catalogue")
        return found


def _ended_by(status: int) -> str:
    return f"by signal {-status}" if status < 0 else f"with status {status}"


def make_snapshot(store: SnapshotStore, language: Language, image: Manifest | None, order: Order) -> Snapshot:
    """Return a snapshot of what the language is on this machine now. *Raises* InvalidRequest, OSError.

    On an image that is pinned, which has all that the language is made of; else the host's programs are.
    """
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
        pins=() if image else pin(_paths(language)),
        image=image.digest if image else "",
    )
    try:
        return msgspec.convert(msgspec.to_builtins(snapshot), Snapshot)
    except msgspec.ValidationError as error:
        raise InvalidRequest("snapshot", str(error)) from None


def _paths(language: Language) -> list[str]:
    """Return the paths of what a language needs; a pattern that nothing matches stays, and is no file to pin."""
    found = [tuple(Rooted().matching(pattern)) or (pattern,) for pattern in language.programs]
    return [path for paths in found for path in paths]
