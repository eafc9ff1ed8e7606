"""Write an archive's members below a directory, and never anywhere else.

Each part of a path is opened by itself, from the directory that holds it, as a directory and never through a link
(`openat` with O_NOFOLLOW): there is no path for the kernel to resolve that a link could bend. Files are made new
(O_EXCL). What is made belongs to whoever runs this, without set-uid, set-gid and sticky bits and writable for nobody
else; extended attributes, and so file capabilities, are never set.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import contextmanager

from sandfork.errors import ArchiveRefused
from sandfork.images.archive import Bounds, ByteStream, Chunks, Kind, Member, read_members

_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_WHITEOUT, _OPAQUE, _RESERVED = b".wh.", b".wh..wh..opq", b".wh..wh."


class TreeWriter:
    """Makes members below an open directory. Owns its descriptors.

    `bytes_written` counts what the files hold, `set_id` has the paths of those that came with set-uid or set-gid bits.
    """

    def __init__(self, root: str) -> None:
        self._root = os.open(root, _DIRECTORY)
        self._parent: tuple[bytes, ...] = ()
        self._parent_fd = os.dup(self._root)
        self._implied = 0
        self._may_imply = 0
        self.bytes_written = 0
        self.set_id: set[bytes] = set()

    def close(self) -> None:
        """Let go of the directory."""
        os.close(self._parent_fd)
        os.close(self._root)

    def extract(self, stream: ByteStream, bounds: Bounds, *, whiteouts: bool = False) -> None:
        """Make all members of a tar; with `whiteouts` it is a layer over what is there. *Raises* ArchiveRefused."""
        seen: dict[tuple[bytes, ...], Kind] = {}
        self._implied, self._may_imply = 0, bounds.max_members
        for member, chunks in read_members(stream, bounds):
            name = member.path[-1] if member.path else b""
            if {member.kind, seen.get(member.path, member.kind)} != {Kind.DIRECTORY} and member.path in seen:
                raise ArchiveRefused(f"the archive has {_show(member.path)} twice")
            if whiteouts and name.startswith(_WHITEOUT):
                self._white_out(member, seen)
                continue
            seen[member.path] = member.kind
            self._add(member, chunks)

    def _add(self, member: Member, chunks: Chunks) -> None:
        if not member.path:
            return
        *above, name = member.path
        try:
            parent = self._enter(tuple(above))
            if member.kind is Kind.DIRECTORY:
                self._directory(parent, name, member)
                return
            self._make_way(parent, name)
            if member.kind is Kind.FILE:
                self._file(parent, name, member, chunks)
            elif member.kind is Kind.SYMLINK:
                os.symlink(member.target, name, dir_fd=parent)
            else:
                self._hard_link(parent, name, member)
        except (FileExistsError, NotADirectoryError, IsADirectoryError, FileNotFoundError) as error:
            raise ArchiveRefused(f"{_show(member.path)} does not fit what is there: {error.strerror}") from None

    def _enter(self, parts: tuple[bytes, ...]) -> int:
        """Return a descriptor of a directory, which is ours; directories that the archive left out are made."""
        if parts == self._parent:
            return self._parent_fd
        fd = os.dup(self._root)
        try:
            for part in parts:
                try:
                    below = os.open(part, _DIRECTORY, dir_fd=fd)
                except FileNotFoundError:
                    self._imply(part, fd)
                    below = os.open(part, _DIRECTORY, dir_fd=fd)
                os.close(fd)
                fd = below
        except OSError as error:
            os.close(fd)
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                raise ArchiveRefused(f"the archive leads through {_show(parts)}, which is a link or a file") from None
            raise
        os.close(self._parent_fd)
        self._parent, self._parent_fd = parts, fd
        return fd

    def _imply(self, name: bytes, parent: int) -> None:
        """Make a directory that the archive left out: a member of a few bytes could name a hundred."""
        self._implied += 1
        if self._implied > self._may_imply:
            raise ArchiveRefused(f"the archive leaves out more than {self._may_imply:,} directories")
        os.mkdir(name, 0o755, dir_fd=parent)

    def _directory(self, parent: int, name: bytes, member: Member) -> None:
        there = _status(parent, name)
        if there is not None and not stat.S_ISDIR(there.st_mode):
            os.unlink(name, dir_fd=parent)
            there = None
        if there is None:
            os.mkdir(name, 0o700, dir_fd=parent)
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
        os.fchmod(fd, member.mode & 0o755 | 0o700)
        os.close(fd)

    def _make_way(self, parent: int, name: bytes) -> None:
        """Remove what a member of an earlier layer left in this place."""
        there = _status(parent, name)
        if there is None:
            return
        if stat.S_ISDIR(there.st_mode):
            shutil.rmtree(name, dir_fd=parent)
        else:
            os.unlink(name, dir_fd=parent)

    def _file(self, parent: int, name: bytes, member: Member, chunks: Chunks) -> None:
        fd = os.open(name, _FILE, 0o600, dir_fd=parent)
        try:
            for chunk in chunks:
                view = memoryview(chunk)
                while view:
                    view = view[os.write(fd, view) :]
            os.fchmod(fd, member.mode & 0o755 | 0o600)
            os.utime(fd, (member.mtime, member.mtime))
        finally:
            os.close(fd)
        self.bytes_written += member.size
        path = b"/".join(member.path)
        (self.set_id.add if member.mode & (stat.S_ISUID | stat.S_ISGID) else self.set_id.discard)(path)

    def _hard_link(self, parent: int, name: bytes, member: Member) -> None:
        own = os.dup(parent)  # entering the other's directory may leave this one
        try:
            *above, other = member.linked or (b".",)
            theirs = self._enter(tuple(above))
            there = _status(theirs, other)
            if there is None or not stat.S_ISREG(there.st_mode):
                raise ArchiveRefused(f"{_show(member.path)} is a hard link to {_show(member.linked)}, which is no file")
            os.link(other, name, src_dir_fd=theirs, dst_dir_fd=own, follow_symlinks=False)
        finally:
            os.close(own)

    def _white_out(self, member: Member, seen: Collection[tuple[bytes, ...]]) -> None:
        """Remove what a layer says is no longer there; what the layer itself brings stays."""
        *above, name = member.path
        if not (member.kind is Kind.FILE and member.size == 0):
            raise ArchiveRefused(f"{_show(member.path)} has the name of a whiteout and is something else")
        parent = self._enter(tuple(above))
        if name == _OPAQUE:
            for each in os.listdir(parent):
                entry = (*above, os.fsencode(each))
                if not any(path[: len(entry)] == entry for path in seen):
                    self._make_way(parent, entry[-1])
            return
        target = name.removeprefix(_WHITEOUT)
        if name.startswith(_RESERVED) or target in (b"", b".", b".."):
            raise ArchiveRefused(f"{_show(member.path)} is a whiteout of a kind that is unknown")
        if (*above, target) not in seen:
            self._make_way(parent, target)


def _status(parent: int, name: bytes) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _show(parts: tuple[bytes, ...]) -> str:
    return repr(b"/".join(parts)[:200].decode(errors="backslashreplace"))


@contextmanager
def tree_writer(root: str) -> Iterator[TreeWriter]:
    """Write below `root`, a directory that is there."""
    writer = TreeWriter(root)
    try:
        yield writer
    finally:
        writer.close()
