"""The store of images: content by its digest, names that point to it.

    DIRECTORY/
      manifests/NAME.json     one image; replaced by renaming, so a reader sees the old one or the new one
      blobs/HEX               a file whose sha256 is HEX: the tar of an image, a bill of materials
      trees/HEX/              the blob HEX unpacked: what sandboxes see as their root
      leases/HEX              locked, shared, by whoever uses the tree
      work/[NAME@]XXXX/       what is being made; locked by its maker, removed when that is gone
      lock                    held for the instant in which something is published or removed

Every step is one rename, so that a crash leaves what was there before; what it leaves in work/ the next who opens the
store to write removes, and content that no name reached is garbage. A lease is a file lock: it ends with its process.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import zstandard

from sandfork.errors import ArchiveRefused, ImageBusy, ImageCorrupt, ImageNotFound, StoreUnusable
from sandfork.images.archive import Bounds
from sandfork.images.discarding import remove_abandoned, remove_tree
from sandfork.images.durable import is_full, sync_directory, write_durably
from sandfork.images.manifest import Manifest, decode_manifest, encode_manifest
from sandfork.images.naming import check_name, digest_of, hex_of, is_name
from sandfork.images.progress import Tell, tell_nobody
from sandfork.images.tree import tree_writer

_PARTS = ("manifests", "blobs", "trees", "leases", "work")
_MAX_WINDOW = 1 << 27
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Garbage:
    """What a collection removed, and how many bytes of blobs and files that were."""

    digests: tuple[str, ...]
    bytes: int


class Lease:
    """Holds a tree: it is not collected before `close`, or the end of the process."""

    def __init__(self, manifest: Manifest, tree: Path, fd: int) -> None:
        self.manifest = manifest
        self.tree = tree
        self._fd = fd

    def close(self) -> None:
        """Let go; may be called more than once."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> Lease:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Store:
    """See the module. Reading needs only the directory's permissions; any thread may call anything."""

    def __init__(self, root: Path) -> None:
        """Name the store; it is made when something is first written to it."""
        self.root = root

    # --- reading ---

    def names(self) -> Sequence[str]:
        """Return the names of all images, sorted, of damaged ones too. *Raises* StoreUnusable."""
        try:
            entries = os.listdir(self.root / "manifests")
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise self._unusable(error) from None
        stems = (entry.removesuffix(".json") for entry in entries if entry.endswith(".json"))
        return sorted(stem for stem in stems if is_name(stem))

    def list(self) -> Sequence[Manifest]:
        """Return all images, sorted by name. *Raises* ImageCorrupt where one is damaged, StoreUnusable."""
        found = []
        for name in self.names():
            try:
                found.append(self.get(name))
            except ImageNotFound:
                continue  # removed meanwhile
        return tuple(found)

    def stamp(self) -> object:
        """Return what is another value whenever an image was published, replaced or removed; cheap to ask for often."""
        try:
            with os.scandir(self.root / "manifests") as entries:
                return {(entry.name, entry.inode(), entry.stat().st_mtime_ns) for entry in entries}
        except OSError:
            return set()

    def get(self, name: str) -> Manifest:
        """Return the image of that name. *Raises* InvalidRequest, ImageNotFound, ImageCorrupt, StoreUnusable."""
        path = self.root / "manifests" / f"{check_name(name)}.json"
        try:
            manifest = decode_manifest(path.read_bytes())
        except FileNotFoundError:
            raise ImageNotFound(name) from None
        except OSError as error:
            raise self._unusable(error) from None
        except ImageCorrupt as error:
            raise ImageCorrupt(f"{path}: {error.message}; {_take_it_away(name)}") from None
        if manifest.name != name:
            raise ImageCorrupt(f"{path}: it is of another image, {manifest.name!r}; {_take_it_away(name)}")
        return manifest

    def blob(self, digest: str) -> Path:
        """Return where content of that digest is. *Raises* ImageCorrupt when it is not there."""
        path = self.root / "blobs" / hex_of(digest)
        if not path.is_file():
            raise ImageCorrupt(f"the store has no content {digest}")
        return path

    def tree(self, manifest: Manifest) -> Path:
        """Return the unpacked root of an image, to be read only. *Raises* ImageCorrupt when it is not there."""
        path = self.root / "trees" / hex_of(manifest.digest)
        if not path.is_dir():
            raise ImageCorrupt(f"the store has no files of image {manifest.name!r}; {_take_it_away(manifest.name)}")
        return path

    def lease(self, name: str) -> Lease:
        """Hold the image that has the name now. *Raises* ImageNotFound, ImageCorrupt, StoreUnusable."""
        for _ in range(16):
            manifest = self.get(name)
            path = self.root / "leases" / hex_of(manifest.digest)
            try:
                fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except FileNotFoundError:
                continue  # replaced and collected meanwhile; the name points to something else by now
            except OSError as error:
                raise self._unusable(error) from None
            try:
                fcntl.flock(fd, fcntl.LOCK_SH)
                if _is_still(path, fd):
                    return Lease(manifest, self.tree(manifest), fd)
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
        raise ImageCorrupt(f"the store has no lease file of image {name!r}")

    # --- writing ---

    def make(self) -> None:
        """Make the store where there is none yet. *Raises* StoreUnusable."""
        self._open_to_write()

    @contextmanager
    def work(self, name: str = "") -> Iterator[Path]:
        """Give a directory of the store's for as long as something is made in it, such as the image of a name.

        *Raises* ImageBusy when an image of that name is being made already, StoreUnusable, as when the disk gets full.
        """
        self._open_to_write()
        prefix = f"{name}@" if name else ""
        try:
            with self._locked():
                # What nobody holds any more was removed a moment ago.
                if prefix and any((self.root / "work").glob(f"{prefix}*")):
                    raise ImageBusy(name)
                path = Path(tempfile.mkdtemp(dir=self.root / "work", prefix=prefix))
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                fcntl.flock(fd, fcntl.LOCK_EX)
        except OSError as error:
            raise self._unusable(error) from None
        try:
            yield path
        except OSError as error:
            if is_full(error):
                raise self._unusable(error) from None
            raise
        finally:
            remove_tree(path)
            os.close(fd)

    def adopt(
        self,
        manifest: Manifest,
        blob: Path,
        sbom: bytes = b"",
        *,
        bounds: Bounds | None = None,
        tell: Tell = tell_nobody,
    ) -> Manifest:
        """Check, unpack and publish an image; `blob` is copied while it is checked. Return its manifest.

        An image that has the name is replaced; whoever holds it keeps what they have. *Raises* ImageCorrupt when
        content is not what a digest says, ArchiveRefused, InvalidRequest, StoreUnusable (as on a full disk); then the
        store is as before.
        """
        check_name(manifest.name)
        if bool(sbom) != bool(manifest.sbom) or (sbom and digest_of(sbom) != manifest.sbom):
            raise ImageCorrupt(f"the bill of materials of {manifest.name!r} is not the one that its manifest names")
        try:
            with self.work() as work:
                tree_bytes = _unpack(manifest, blob, work, bounds or Bounds(), tell)
                if tree_bytes != manifest.tree_bytes:
                    raise ImageCorrupt(
                        f"the files of {manifest.name!r} hold {tree_bytes:,} bytes and not {manifest.tree_bytes:,}"
                    )
                write_durably(work / "sbom", sbom)
                write_durably(work / "manifest", encode_manifest(manifest))
                self._publish(manifest, work)
        except OSError as error:
            raise self._unusable(error) from None
        return manifest

    def remove(self, name: str) -> None:
        """Take an image's name away, also that of a damaged one; its content is garbage once nobody holds it.

        *Raises* InvalidRequest, ImageNotFound, StoreUnusable.
        """
        if check_name(name) not in self.names():
            raise ImageNotFound(name)
        self._open_to_write()
        try:
            with self._locked():
                (self.root / "manifests" / f"{name}.json").unlink()
        except FileNotFoundError:
            raise ImageNotFound(name) from None
        except OSError as error:
            raise self._unusable(error) from None

    def collect(self) -> Garbage:
        """Remove all content that no image names and nobody holds. *Raises* ImageCorrupt, StoreUnusable."""
        self._open_to_write()
        removed, freed = [], 0
        try:
            with self.work() as work:
                with self._locked():
                    for hexadecimal in self._unnamed():
                        if self._take_away(hexadecimal, work):
                            removed.append(f"sha256:{hexadecimal}")
                freed = sum(
                    path.lstat().st_size for path in work.rglob("*") if path.is_file() and not path.is_symlink()
                )
        except OSError as error:
            raise self._unusable(error) from None
        return Garbage(tuple(removed), freed)

    def sweep(self) -> None:
        """Remove what somebody who is gone was making. *Raises* StoreUnusable."""
        if self.root.is_dir():
            self._open_to_write()

    def _unnamed(self) -> Sequence[str]:
        named = {hex_of(digest) for each in self.list() for digest in (each.digest, each.sbom) if digest}
        there = {path.name for part in ("blobs", "trees", "leases") for path in (self.root / part).iterdir()}
        return sorted(there - named)

    def _take_away(self, hexadecimal: str, work: Path) -> bool:
        """Move a digest's content to `work` unless somebody holds it."""
        lease = self.root / "leases" / hexadecimal
        fd = os.open(lease, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(fd)
            return False
        for part in ("trees", "blobs", "leases"):
            path = self.root / part / hexadecimal
            if os.path.lexists(path):
                path.rename(work / f"{part}-{hexadecimal}")
        os.close(fd)
        return True

    def _publish(self, manifest: Manifest, work: Path) -> None:
        hexadecimal = hex_of(manifest.digest)
        (work / "root").chmod(0o755)
        with self._locked():
            if manifest.sbom:
                (work / "sbom").rename(self.root / "blobs" / hex_of(manifest.sbom))
            (work / "blob").rename(self.root / "blobs" / hexadecimal)
            if not (self.root / "trees" / hexadecimal).exists():
                (work / "root").rename(self.root / "trees" / hexadecimal)
            (self.root / "leases" / hexadecimal).touch(0o644)
            (work / "manifest").rename(self.root / "manifests" / f"{manifest.name}.json")
            for part in ("blobs", "trees", "manifests"):
                sync_directory(self.root / part)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        fd = os.open(self.root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)

    def _open_to_write(self) -> None:
        """Make the directories that are missing, and remove what somebody who is gone was making."""
        try:
            for part in _PARTS:
                path = self.root / part
                path.mkdir(0o700 if part == "work" else 0o755, parents=True, exist_ok=True)
            with self._locked():
                for path in (self.root / "work").iterdir():
                    remove_abandoned(path)
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> StoreUnusable:
        return StoreUnusable(f"the store of images in {self.root}: {error.strerror or error}")


class _Verified:
    """Reads a blob while copying it and summing it up; a directory in the way of the copy is nobody's but ours."""

    def __init__(self, source: IO[bytes], copy: IO[bytes], size: int, tell: Tell) -> None:
        self._source, self._copy, self._whole, self._tell = source, copy, size, tell
        self._sha256 = hashlib.sha256()
        self.size = 0

    def read(self, size: int = -1, /) -> bytes:
        data = self._source.read(_CHUNK if size < 0 else min(size, _CHUNK))
        self.size += len(data)
        if self.size > self._whole:
            raise ImageCorrupt(f"the blob is larger than the {self._whole:,} bytes that its manifest says")
        self._sha256.update(data)
        self._copy.write(data)
        if data:
            self._tell(min(99.0, 100 * self.size / self._whole), "unpacking")
        return data

    def digest(self) -> str:
        return f"sha256:{self._sha256.hexdigest()}"


def _unpack(manifest: Manifest, blob: Path, work: Path, bounds: Bounds, tell: Tell) -> int:
    """Unpack into work/root and copy to work/blob; return what the files hold."""
    (work / "root").mkdir(0o700)
    with blob.open("rb") as source, (work / "blob").open("xb") as copy, tree_writer(str(work / "root")) as writer:
        verified = _Verified(source, copy, manifest.size, tell)
        decompressor = zstandard.ZstdDecompressor(max_window_size=_MAX_WINDOW)
        problem: ArchiveRefused | None = None
        try:
            with decompressor.stream_reader(verified, closefd=False) as tar:  # type: ignore[arg-type]
                writer.extract(tar, bounds)
        except zstandard.ZstdError as error:
            problem = ArchiveRefused(f"the blob is no zstd stream, or is damaged: {error}")
        except ArchiveRefused as error:
            problem = error
        while verified.read():
            pass  # what says whether the archive or its transport is at fault
        if verified.size != manifest.size or verified.digest() != manifest.digest:
            raise ImageCorrupt(
                f"the blob of {manifest.name!r} has another digest than its manifest says, or is truncated"
            )
        if problem is not None:
            raise problem
        copy.flush()
        os.fchmod(copy.fileno(), 0o644)
        os.fsync(copy.fileno())
    return writer.bytes_written


def _take_it_away(name: str) -> str:
    return f"`sandfork rootfs remove {name}` takes it away, and it can be made or pulled again"


def _is_still(path: Path, fd: int) -> bool:
    """Tell whether a descriptor is of the file that has the path now."""
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    return os.path.samestat(there, os.fstat(fd))
