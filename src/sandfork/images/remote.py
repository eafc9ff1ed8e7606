"""Images and snapshots in a bucket: the same content-addressed layout as on disk, below a prefix.

    blobs/sha256/<hex>        what a manifest's digest names; written once, never changed
    manifests/<name>.json     a root file system image: written last, so that what is listed is whole
    snapshots/<name>.json     a snapshot, which is all in its document

Nothing that comes from a bucket is believed. Names and digests have a form, documents a largest size, blobs the size
that their manifest tells and the content that their digest tells, or they are refused; of one that is refused nothing
stays. A transfer that broke goes on where it was: an upload with the parts that the server has, a download with the
file that it left. Both are checked over their whole length. Blocking, as `bucket` is.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from sandfork.errors import NotInBucket, RemoteFailed
from sandfork.images.bucket import Bucket, BucketSettings, Part
from sandfork.images.durable import is_full
from sandfork.images.naming import check_name, digest_of, is_digest, is_name
from sandfork.images.progress import Tell, tell_nobody

PART_BYTES = 8 << 20
MOST_PARTS = 9000
MAX_DOCUMENT_BYTES = 4 << 20
MAX_NAMES = 10_000

MANIFESTS, SNAPSHOTS = "manifests", "snapshots"
_CALLED = {MANIFESTS: "image", SNAPSHOTS: "snapshot"}


class Remote:
    """What a bucket holds. Every method *Raises* RemoteFailed."""

    def __init__(self, bucket: Bucket, part_bytes: int = PART_BYTES) -> None:
        self._bucket = bucket
        self._part_bytes = part_bytes

    @property
    def settings(self) -> BucketSettings:
        """Where the bucket is, and how long is waited for it."""
        return self._bucket.settings

    @property
    def place(self) -> str:
        """How the bucket is called in messages."""
        return self._bucket.place

    def path_of(self, digest: str) -> str:
        """Return where a blob is, as tools of S3 write it. *Raises* RemoteFailed for what is no digest."""
        return self._bucket.address(blob_key(digest))

    def names(self, kind: str) -> list[str]:
        """Return the names of the documents of a kind; keys that no document of ours can have are passed over."""
        found: list[str] = []
        for each in self._bucket.entries(f"{kind}/"):
            name = each.key.removeprefix(f"{kind}/").removesuffix(".json")
            if is_name(name) and each.key == f"{kind}/{name}.json":
                found.append(name)
            if len(found) > MAX_NAMES:
                raise RemoteFailed(f"{self.place} holds more than {MAX_NAMES} {kind}")
        return found

    def read(self, kind: str, name: str) -> bytes:
        """Return a document as it is there, unread. *Raises* NotInBucket."""
        try:
            return self._bucket.read(f"{kind}/{check_name(name)}.json", MAX_DOCUMENT_BYTES)
        except NotInBucket:
            raise NotInBucket(f"{self.place} has no {_CALLED[kind]} {name!r}") from None

    def publish(self, kind: str, name: str, document: bytes) -> None:
        """Put a document there; everything it names must be there already."""
        self._bucket.write(f"{kind}/{check_name(name)}.json", document)

    def push(self, path: Path, digest: str, tell: Tell = tell_nobody) -> None:
        """Put a blob there, unless it is; go on with an upload that broke. *Raises* RemoteFailed."""
        key = blob_key(digest)
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            part_bytes = part_size(size, self._part_bytes)
            tag = self._composite(file, digest, part_bytes)
            if self._has(key, size, tag):
                tell(100.0, "")
                return
            if size == 0:
                raise RemoteFailed(f"{path} is empty, which no image is")
            upload, parts = self._upload(file, key, size, part_bytes, tell)
        try:
            self._bucket.end(key, upload, parts)
        except RemoteFailed:
            # What was lost may be the answer alone.
            if not self._has(key, size, tag):
                raise
        if not self._has(key, size):
            raise RemoteFailed(f"{self.place}: {digest} is not there after its upload, or of another size: try again")
        tell(100.0, "")

    def _has(self, key: str, size: int, tag: str = "") -> bool:
        there = self._bucket.find(key)
        return there is not None and there.size_bytes == size and tag in ("", there.tag)

    def _composite(self, file: BinaryIO, digest: str, part_bytes: int) -> str:
        """Return the tag that the server gives an upload of these parts. *Raises* RemoteFailed for another content."""
        whole, tags, count = hashlib.sha256(), hashlib.md5(usedforsecurity=False), 0
        while content := file.read(part_bytes):
            whole.update(content)
            tags.update(hashlib.md5(content, usedforsecurity=False).digest())
            count += 1
        if f"sha256:{whole.hexdigest()}" != digest:
            raise RemoteFailed(
                f"the local blob {digest} was altered: its content is sha256:{whole.hexdigest()}; make the image again"
            )
        return f"{tags.hexdigest()}-{count}"

    def _upload(self, file: BinaryIO, key: str, size: int, part_bytes: int, tell: Tell) -> tuple[str, Sequence[Part]]:
        """Have all parts there; return the upload and its parts."""
        upload = self._bucket.begun(key)
        there = self._bucket.parts(key, upload) if upload is not None else {}
        if upload is None:
            upload = self._bucket.begin(key)
        parts: list[Part] = []
        for number, start in enumerate(range(0, size, part_bytes), 1):
            tell(_percent(start, size), "")
            file.seek(start)
            content = file.read(part_bytes)
            part = there.get(number)
            if part is None or part.size_bytes != len(content) or part.tag != _tag(content):
                part = self._bucket.put_part(key, upload, number, content)
            parts.append(part)
        return upload, parts

    def read_blob(self, digest: str, max_bytes: int) -> bytes:
        """Return a small blob. *Raises* RemoteFailed when it is not there, too large or not its digest."""
        try:
            content = self._bucket.read(blob_key(digest), max_bytes)
        except NotInBucket as error:
            raise RemoteFailed(f"{error.message}, which a manifest there names: push it again") from None
        if digest_of(content) != digest:
            raise RemoteFailed(f"{self.place}: {digest} was altered there: push it again")
        return content

    def pull(self, digest: str, size: int, partial: Path, tell: Tell = tell_nobody) -> None:
        """Have a blob of that size in the file `partial`, going on with what is in it.

        *Raises* RemoteFailed: what the bucket has is of another size or content (then `partial` is gone), the disk is
        full (then too), the connection broke (then it is kept), another process fetches the same.
        """
        key = blob_key(digest)
        there = self._bucket.find(key)
        if there is None:
            raise RemoteFailed(f"{self.place} has a manifest that names {digest}, and no such blob: push it again")
        if there.size_bytes != size:
            raise RemoteFailed(
                f"{self.place}: the manifest tells {size} bytes of {digest}, and there are {there.size_bytes}: it is "
                "not to be trusted: push it again"
            )
        with _locked(partial) as file:
            try:
                self._download(key, digest, size, file, tell)
            except _NotAsPromised as error:
                partial.unlink()
                raise RemoteFailed(f"{self.place}: {error}") from None
            except OSError as error:
                if is_full(error):
                    partial.unlink()
                    raise RemoteFailed(
                        f"the disk of {partial.parent} is full: {size} bytes are needed for {digest}"
                    ) from None
                raise RemoteFailed(f"{partial}: {error.strerror}") from None

    def _download(self, key: str, digest: str, size: int, file: BinaryIO, tell: Tell) -> None:
        whole, done = hashlib.sha256(), 0
        while content := file.read(1 << 20):
            whole.update(content)
            done += len(content)
        resumed = done > 0
        if done > size:
            raise _NotAsPromised(f"what was fetched of {digest} before is longer than it is; try again")
        _refuse_a_disk_too_small(file, size - done)
        tell(_percent(done, size), "")
        if done < size:
            for chunk in self._bucket.stream(key, done):
                done += len(chunk)
                if done > size:
                    raise _NotAsPromised(f"{digest} is longer than its manifest tells")
                file.write(chunk)
                whole.update(chunk)
                tell(_percent(done, size), "")
        if done < size:
            raise RemoteFailed(f"{self.place}: the connection broke after {done} of {size} bytes; the next try goes on")
        if f"sha256:{whole.hexdigest()}" != digest:
            raise _NotAsPromised(
                f"{digest} was altered there"
                + (", or what an earlier try left here: try again" if resumed else ": push it again")
                + f" (its content is sha256:{whole.hexdigest()})"
            )
        os.fsync(file.fileno())


class _NotAsPromised(Exception):
    """What arrived is not what it should be, and must not stay."""


def blob_key(digest: str) -> str:
    """Return the key of a blob. *Raises* RemoteFailed for what is no digest."""
    if not is_digest(digest):
        raise RemoteFailed(f"{digest[:80]!r} is no digest: sha256: and 64 hexadecimal digits are")
    return "blobs/" + digest.replace(":", "/")


def part_size(size: int, least: int = PART_BYTES) -> int:
    """Return how large the parts of an upload are: the same each time, so that one that broke can go on."""
    return max(least, -(-size // MOST_PARTS))


def _percent(done: int, total: int) -> float:
    return 100 * done / max(1, total)


def _tag(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@contextmanager
def _locked(path: Path) -> Iterator[BinaryIO]:
    """Open a file to read what it holds and to write behind it, for this process alone. *Raises* RemoteFailed."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise RemoteFailed(f"{path}: {error.strerror}") from None
    file = os.fdopen(descriptor, "r+b", buffering=0)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RemoteFailed(f"{path}: another process fetches the same; wait for it") from None
        yield file
    finally:
        with suppress(OSError):
            file.close()


def _refuse_a_disk_too_small(file: BinaryIO, wanted: int) -> None:
    """*Raises* OSError (ENOSPC) when what is still to come does not fit."""
    room = os.fstatvfs(file.fileno())
    if room.f_bavail * room.f_frsize < wanted:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
