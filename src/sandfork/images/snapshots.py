"""Snapshots: named templates of a language that can be made again, each a small document.

In the process tier there is no machine state worth keeping: a template is made in milliseconds, of a language's
toolchain and of what it preloads. So a snapshot is what a template was made *of*: the language and its template, what
is preloaded, the memory and the processors that its sandboxes may use, and the toolchain, pinned by the digest of its
image or, on the host's files, by the content of its programs. One whose toolchain has changed is refused rather than
run on another. A tier that keeps machine state keeps it beside this.

    DIRECTORY/snapshots/NAME.json    replaced by renaming; what was kept or removed is so after a crash, too
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from sandfork.errors import SnapshotConflict, SnapshotNotFound, StoreUnusable
from sandfork.images.durable import sync_directory
from sandfork.images.naming import check_name, is_name

MAX_DOCUMENT_BYTES = 64 << 10
MAX_MEM_MB = 1 << 20
MAX_VCPUS = 1024

_ONE_LINE = r"^[^\x00-\x1f\x7f-\x9f]*\Z"  # it is shown on terminals
Text = Annotated[str, Meta(max_length=4096, pattern=_ONE_LINE)]
Line = Annotated[str, Meta(max_length=64, pattern=_ONE_LINE)]
Word = Annotated[str, Meta(max_length=64, pattern=r"^[a-z0-9][a-z0-9+._-]*\Z")]


class Pin(msgspec.Struct, frozen=True):
    """A program that the template is made of, and the SHA-256 of its content."""

    path: Annotated[str, Meta(max_length=4096, pattern=r"^/[^\x00-\x1f\x7f-\x9f]*\Z")]
    sha256: Annotated[str, Meta(pattern=r"^[0-9a-f]{64}\Z")]


class Snapshot(msgspec.Struct, frozen=True):
    """A template that can be made again.

    `revision` counts how often the name was made. `template` is the catalogue's key, `toolchain` the version that it
    told, `image` the digest of the image that it runs on, "" for the host's own files. `created` is RFC 3339 in UTC.
    """

    name: Word
    language: Word
    template: Word
    mem_mb: Annotated[int, Meta(ge=8, le=MAX_MEM_MB)]
    vcpus: Annotated[int, Meta(ge=1, le=MAX_VCPUS)]
    created: Line
    revision: Annotated[int, Meta(ge=1)] = 1
    toolchain: Line = ""
    preload: Annotated[tuple[Text, ...], Meta(max_length=256)] = ()
    pins: Annotated[tuple[Pin, ...], Meta(max_length=64)] = ()
    image: Annotated[str, Meta(pattern=r"^(sha256:[0-9a-f]{64})?\Z")] = ""

    @property
    def mem_bytes(self) -> int:
        """The memory that a sandbox of it may use."""
        return self.mem_mb << 20


class SnapshotStore:
    """The snapshots of this machine. Whoever may read the directory may read; one process at a time should write."""

    def __init__(self, root: Path) -> None:
        """Name the store; it is made when something is first written to it."""
        self._root = root / "snapshots"

    def names(self) -> tuple[str, ...]:
        """Return the names of all, sorted. *Raises* StoreUnusable."""
        try:
            entries = os.listdir(self._root)
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise self._unusable(error) from None
        stems = (entry.removesuffix(".json") for entry in entries if entry.endswith(".json"))
        return tuple(sorted(stem for stem in stems if is_name(stem)))

    def get(self, name: str) -> Snapshot:
        """Return one. *Raises* InvalidRequest, SnapshotNotFound, SnapshotConflict."""
        return decode_snapshot(self.document(name), name)

    def document(self, name: str) -> bytes:
        """Return one as it is kept. *Raises* InvalidRequest, SnapshotNotFound, StoreUnusable."""
        try:
            return self._path(name).read_bytes()
        except FileNotFoundError:
            raise SnapshotNotFound(f"there is no snapshot {name!r}") from None
        except OSError as error:
            raise self._unusable(error) from None

    def put(self, snapshot: Snapshot) -> None:
        """Keep one; one of the same name is replaced at once. *Raises* StoreUnusable, as on a full disk."""
        try:
            self._put(self._path(snapshot.name), encode_snapshot(snapshot))
        except OSError as error:
            raise self._unusable(error) from None

    def _put(self, path: Path, document: bytes) -> None:
        if not self._root.is_dir():
            self._root.mkdir(mode=0o755, parents=True, exist_ok=True)
            sync_directory(self._root.parent)
        descriptor, fresh = tempfile.mkstemp(dir=self._root, prefix=".")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(document)
                os.fchmod(file.fileno(), 0o644)
                file.flush()
                os.fsync(file.fileno())
            Path(fresh).rename(path)
        except BaseException:
            Path(fresh).unlink(missing_ok=True)
            raise
        sync_directory(self._root)

    def remove(self, name: str) -> None:
        """Forget one. *Raises* InvalidRequest, SnapshotNotFound, StoreUnusable."""
        try:
            self._path(name).unlink()
            sync_directory(self._root)
        except FileNotFoundError:
            raise SnapshotNotFound(f"there is no snapshot {name!r}") from None
        except OSError as error:
            raise self._unusable(error) from None

    def _path(self, name: str) -> Path:
        return self._root / f"{check_name(name)}.json"

    def _unusable(self, error: OSError) -> StoreUnusable:
        return StoreUnusable(f"the store of snapshots in {self._root}: {error.strerror or error}")


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """Return the document of a snapshot."""
    return msgspec.json.format(msgspec.json.encode(snapshot), indent=1) + b"\n"


def decode_snapshot(document: bytes, name: str) -> Snapshot:
    """Return the snapshot of a document, wherever that comes from. *Raises* SnapshotConflict for anything else."""
    try:
        if len(document) > MAX_DOCUMENT_BYTES:
            raise ValueError(f"it is larger than {MAX_DOCUMENT_BYTES} bytes")
        snapshot = msgspec.json.decode(document, type=Snapshot)
    except (ValueError, RecursionError) as error:
        raise SnapshotConflict(f"the document of snapshot {name[:64]!r} is none: {error}") from None
    if snapshot.name != name:
        raise SnapshotConflict(f"the document of snapshot {name[:64]!r} is of another: {snapshot.name!r}")
    return snapshot


def pin(paths: Sequence[str]) -> tuple[Pin, ...]:
    """Return the pins of programs. *Raises* OSError."""
    return tuple(Pin(path, _content_of(path)) for path in paths)


class Pins:
    """Tells whether programs are still what they were pinned as; a file is read again only when it was changed."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, int, int, int, int], str] = {}

    def changed(self, pins: Sequence[Pin]) -> str | None:
        """Return the path of the first program that is another now or gone, None when there is none."""
        return next((each.path for each in pins if self._content(each.path) != each.sha256), None)

    def _content(self, path: str) -> str:
        try:
            status = os.stat(path)
            known = (path, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
            if known not in self._known:
                if len(self._known) > 1024:
                    self._known.clear()
                self._known[known] = _content_of(path)
            return self._known[known]
        except OSError:
            return ""


def _content_of(path: str) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
