"""Pack a directory into a blob: a tar whose bytes depend on nothing but what is in it, compressed with zstd.

Members are in the order of their names, belong to root, and have the modes that an unpacked image has; directories and
links have no time. /dev, /proc, /sys, /run and /tmp are packed empty: each sandbox has its own. Sockets, FIFOs and
devices elsewhere are refused. Nothing is ever opened through a link.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import zstandard

from sandfork.errors import ArchiveRefused
from sandfork.images.archive import Bounds
from sandfork.images.growth import too_large
from sandfork.images.progress import Tell

SET_ID = stat.S_ISUID | stat.S_ISGID
_OWN_OF_A_SANDBOX = (b"dev", b"proc", b"sys", b"run", b"tmp")
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_LEVEL = 3
_TELL_EVERY_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Packed:
    """A blob that was written: its digest and size in bytes, and what the files in it hold.

    `set_id` names the files that had set-uid or set-gid bits, which nothing has in a blob.
    """

    digest: str
    size: int
    tree_bytes: int
    set_id: tuple[str, ...] = ()


class _Hashed:
    """A file that is written once, and its digest."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self._sha256 = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes) -> int:
        self._sha256.update(data)
        self.size += len(data)
        return self._file.write(data)

    def digest(self) -> str:
        return f"sha256:{self._sha256.hexdigest()}"


def pack(
    tree: Path, blob: Path, bounds: Bounds, tell: Tell, *, written_since: float | None = None, epoch: int = 0
) -> Packed:
    """Write the blob of a directory. *Raises* ArchiveRefused, OSError.

    Files written at `written_since` (seconds since 1970) or later are said to be of `epoch`.
    """
    with blob.open("xb") as file:
        hashed = _Hashed(file)
        compressor = zstandard.ZstdCompressor(level=_LEVEL, write_checksum=True)
        packer = _Packer(bounds, tell, written_since, epoch)
        with (
            compressor.stream_writer(hashed, closefd=False) as compressed,  # type: ignore[arg-type]
            tarfile.open(fileobj=compressed, mode="w|", format=tarfile.PAX_FORMAT) as tar,
            _opened(tree, _DIRECTORY) as top,
        ):
            packer.pack(tar, top, ())
        file.flush()
        os.fsync(file.fileno())
    return Packed(hashed.digest(), hashed.size, packer.bytes, tuple(packer.set_id))


class _Packer:
    def __init__(self, bounds: Bounds, tell: Tell, since: float | None, epoch: int) -> None:
        self._since, self._epoch = since, epoch
        self._bounds = bounds
        self._tell = tell
        self._links: dict[tuple[int, int], bytes] = {}
        self._members = 0
        self._told = 0
        self.bytes = 0
        self.set_id: list[str] = []

    def pack(self, tar: tarfile.TarFile, directory: int, above: tuple[bytes, ...]) -> None:
        """Add everything below a directory."""
        for name in sorted(os.fsencode(each) for each in os.listdir(directory)):
            path = (*above, name)
            status = os.stat(name, dir_fd=directory, follow_symlinks=False)
            self._members += 1
            if self._members > self._bounds.max_members:
                raise ArchiveRefused(f"there are more than {self._bounds.max_members:,} files")
            info = _info(path, status)
            if stat.S_ISDIR(status.st_mode):
                tar.addfile(info)
                if path not in [(own,) for own in _OWN_OF_A_SANDBOX]:
                    with _opened(name, _DIRECTORY, directory) as below:
                        self.pack(tar, below, path)
            elif stat.S_ISLNK(status.st_mode):
                info.linkname = os.readlink(os.fsdecode(name), dir_fd=directory)
                tar.addfile(info)
            else:
                self._file(tar, directory, info, status)

    def _file(self, tar: tarfile.TarFile, directory: int, info: tarfile.TarInfo, status: os.stat_result) -> None:
        place = (status.st_dev, status.st_ino)
        if status.st_nlink > 1 and place in self._links:
            info.type, info.linkname = tarfile.LNKTYPE, os.fsdecode(self._links[place])
            tar.addfile(info)
            return
        self._links[place] = os.fsencode(info.name)
        if status.st_mode & SET_ID:
            self.set_id.append(info.name)
        if self._since is not None and status.st_mtime >= self._since:
            info.mtime = self._epoch
        name = os.fsencode(info.name).rpartition(b"/")[2]
        with _opened(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, directory) as fd:
            info.size = os.fstat(fd).st_size
            self.bytes += info.size
            if self.bytes > self._bounds.max_bytes:
                raise too_large(self._bounds.max_bytes)
            with open(fd, "rb", closefd=False) as content:
                tar.addfile(info, content)
        if self.bytes - self._told > _TELL_EVERY_BYTES:
            self._told = self.bytes
            self._tell(min(99.0, 100 * self.bytes / self._bounds.max_bytes), info.name)


@contextmanager
def _opened(name: bytes | Path, flags: int, directory: int | None = None) -> Iterator[int]:
    """Give a descriptor for the time of a with statement."""
    fd = os.open(name, flags, dir_fd=directory)
    try:
        yield fd
    finally:
        os.close(fd)


def _info(path: tuple[bytes, ...], status: os.stat_result) -> tarfile.TarInfo:
    """Return the header of a member without what differs from machine to machine."""
    info = tarfile.TarInfo(os.fsdecode(b"/".join(path)))
    if stat.S_ISDIR(status.st_mode):
        info.type, info.mode = tarfile.DIRTYPE, status.st_mode & 0o755 | 0o700
    elif stat.S_ISLNK(status.st_mode):
        info.type, info.mode = tarfile.SYMTYPE, 0o777
    elif stat.S_ISREG(status.st_mode):
        info.mode, info.mtime = status.st_mode & 0o755 | 0o600, max(0, int(status.st_mtime))
    else:
        raise ArchiveRefused(f"{info.name!r} is a device, a FIFO or a socket")
    return info
