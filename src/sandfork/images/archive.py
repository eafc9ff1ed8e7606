"""Read a tar that may be hostile: every member is checked before anything is made of it.

Only headers are parsed with the standard library's `tarfile.TarInfo.frombuf`; members are walked here, forwards only
and within bounds. `tarfile` itself follows what headers say to offsets and sizes of any kind, and its filters have let
links out more than once. Refused are: absolute names and names with "..", devices, FIFOs and sparse files, extended
headers that are large or lie, more members or more content than allowed, and an archive that ends before its end.

POSIX.1-2001 (pax) and GNU long names are understood; everything else that those formats have is refused.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from sandfork.errors import ArchiveRefused

_BLOCK = tarfile.BLOCKSIZE
_CHUNK = 1 << 20
_EXTENDED_MAX_BYTES = 64 << 10
_NAME_MAX_BYTES = 255
_PATH_MAX_BYTES = 4000
_DEPTH_MAX = 100
_TRAILER_MAX_BYTES = 16 << 20  # tools pad archives with zeros to whole records
_IGNORED_KEYWORDS = ("uid", "gid", "uname", "gname", "atime", "ctime", "comment", "charset", "hdrcharset")
_IGNORED_PREFIXES = ("SCHILY.xattr.", "LIBARCHIVE.", "SCHILY.dev", "SCHILY.ino", "SCHILY.nlink", "SCHILY.fflags")


class ByteStream(Protocol):
    """Something that is read forwards."""

    def read(self, size: int, /) -> bytes:
        """Return at most so many bytes, none at the end."""
        ...


@dataclass(frozen=True, slots=True)
class Bounds:
    """The most that an archive may hold: bytes of files, and members."""

    max_bytes: int = 16 << 30
    max_members: int = 1_000_000


class Kind(StrEnum):
    """What a member is."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"


@dataclass(frozen=True, slots=True)
class Member:
    """One member. `path` is relative and plain, with () for the top; `target` is a link's, a path for a hard link."""

    path: tuple[bytes, ...]
    kind: Kind
    mode: int
    mtime: int
    size: int = 0
    target: bytes = b""
    linked: tuple[bytes, ...] = ()


Chunks = Iterator[bytes]
_KINDS = {
    tarfile.REGTYPE: Kind.FILE, tarfile.AREGTYPE: Kind.FILE, tarfile.DIRTYPE: Kind.DIRECTORY,
    tarfile.SYMTYPE: Kind.SYMLINK, tarfile.LNKTYPE: Kind.HARDLINK,
}  # fmt: skip
_REFUSED = {
    tarfile.CHRTYPE: "a device", tarfile.BLKTYPE: "a device", tarfile.FIFOTYPE: "a FIFO",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
}  # fmt: skip


def read_members(stream: ByteStream, bounds: Bounds) -> Iterator[tuple[Member, Chunks]]:
    """Yield every member with its content, which must be read before the next. *Raises* ArchiveRefused."""
    return _Reader(stream, bounds).members()


def plain_path(raw: bytes, what: str = "name") -> tuple[bytes, ...]:
    """Return the parts of a relative path that leads down only. *Raises* ArchiveRefused."""
    shown = raw[:200].decode(errors="backslashreplace")
    if raw.startswith(b"/"):
        raise ArchiveRefused(f"the {what} {shown!r} is absolute")
    parts = tuple(part for part in raw.split(b"/") if part not in (b"", b"."))
    if b".." in parts:
        raise ArchiveRefused(f"the {what} {shown!r} leads out of the archive")
    if b"\0" in raw or not raw:
        raise ArchiveRefused(f"the {what} {shown!r} is empty or has a zero byte")
    if len(raw) > _PATH_MAX_BYTES or len(parts) > _DEPTH_MAX or any(len(part) > _NAME_MAX_BYTES for part in parts):
        raise ArchiveRefused(f"the {what} {shown!r}… is too long or too deep")
    return parts


class _Reader:
    def __init__(self, stream: ByteStream, bounds: Bounds) -> None:
        self._stream = stream
        self._bounds = bounds
        self._left = bounds.max_bytes
        self._count = 0

    def members(self) -> Iterator[tuple[Member, Chunks]]:
        extended: dict[str, bytes] = {}
        while (block := self._exactly(_BLOCK)).strip(b"\0"):
            self._count += 1
            if self._count > self._bounds.max_members:
                raise ArchiveRefused(f"the archive has more than {self._bounds.max_members:,} members")
            header = _parse_header(block)
            if header.type in (tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                _merge(extended, self._extended(header))
                continue
            if header.type == tarfile.XGLTYPE:
                if self._extended(header).keys() & {"path", "linkpath", "size"}:
                    raise ArchiveRefused("the archive has one header that names all of its members")
                continue
            yield from self._member(header, extended)
            extended = {}
        if extended:
            raise ArchiveRefused("the archive ends within a member")
        self._drain()

    def _member(self, header: tarfile.TarInfo, extended: dict[str, bytes]) -> Iterator[tuple[Member, Chunks]]:
        member = _as_member(header, extended)
        if member.size > self._left:
            raise ArchiveRefused(f"the archive holds more than {self._bounds.max_bytes:,} bytes")
        self._left -= member.size
        unread = [member.size]
        yield member, self._chunks(unread)
        for _ in self._chunks(unread):
            pass  # what nobody wanted
        self._exactly(-member.size % _BLOCK)

    def _chunks(self, unread: list[int]) -> Chunks:
        while unread[0]:
            data = self._stream.read(min(_CHUNK, unread[0]))
            if not data:
                raise ArchiveRefused("the archive ends within a file: it is truncated")
            unread[0] -= len(data)
            yield data

    def _extended(self, header: tarfile.TarInfo) -> dict[str, bytes]:
        if not 0 <= header.size <= _EXTENDED_MAX_BYTES:
            raise ArchiveRefused(f"an extended header of {header.size:,} bytes is too large")
        raw = self._exactly(header.size)
        self._exactly(-header.size % _BLOCK)
        if header.type == tarfile.GNUTYPE_LONGNAME:
            return {"path": raw.rstrip(b"\0")}
        if header.type == tarfile.GNUTYPE_LONGLINK:
            return {"linkpath": raw.rstrip(b"\0")}
        return _parse_pax(raw)

    def _exactly(self, size: int) -> bytes:
        parts = []
        while size:
            data = self._stream.read(size)
            if not data:
                raise ArchiveRefused("the archive ends before its end: it is truncated, or it is no tar")
            parts.append(data)
            size -= len(data)
        return b"".join(parts)

    def _drain(self) -> None:
        """Read to the end, so that what is around the archive sees all of it: a checksum, a digest."""
        left = _TRAILER_MAX_BYTES
        while data := self._stream.read(_CHUNK):
            left -= len(data)
            if left < 0 or data.strip(b"\0"):
                raise ArchiveRefused("something follows the end of the archive")


def _parse_header(block: bytes) -> tarfile.TarInfo:
    try:
        header = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except (tarfile.HeaderError, ValueError) as error:
        raise ArchiveRefused(f"a header is malformed: {error}") from None
    if header.size < 0:
        raise ArchiveRefused("a member has a negative size")
    return header


def _parse_pax(raw: bytes) -> dict[str, bytes]:
    """Parse records of `length keyword=value newline`."""
    found: dict[str, bytes] = {}
    while raw:
        digits, space, _ = raw[:20].partition(b" ")
        if not space or not digits.isdigit():
            raise ArchiveRefused("an extended header is malformed")
        size = int(digits)
        record, raw = raw[len(digits) + 1 : size], raw[size:]
        keyword, equals, value = record.partition(b"=")
        if size <= len(digits) + 3 or not equals or not value.endswith(b"\n") or len(record) != size - len(digits) - 1:
            raise ArchiveRefused("an extended header is malformed")
        name = keyword.decode(errors="replace")
        if name.startswith("GNU.sparse."):
            raise ArchiveRefused("the archive has a sparse file")
        if name in ("path", "linkpath", "size", "mtime"):
            if name in found:
                raise ArchiveRefused(f"an extended header says twice what its {name} is")
            found[name] = value[:-1]
        elif name not in _IGNORED_KEYWORDS and not name.startswith(_IGNORED_PREFIXES):
            raise ArchiveRefused(f"an extended header has the keyword {name[:80]!r}, which is unknown")
    return found


def _merge(extended: dict[str, bytes], more: dict[str, bytes]) -> None:
    if twice := extended.keys() & more.keys():
        raise ArchiveRefused(f"a member says twice what its {min(twice)} is")
    extended.update(more)


def _number(raw: bytes, most: int) -> int:
    whole = raw.partition(b".")[0]
    if not whole.isdigit() or len(whole) > 20 or int(whole) > most:
        raise ArchiveRefused(f"an extended header has the number {raw[:40]!r}")
    return int(whole)


def _as_member(header: tarfile.TarInfo, extended: dict[str, bytes]) -> Member:
    name = extended.get("path", header.name.encode("utf-8", "surrogateescape"))
    shown = name[:200].decode(errors="backslashreplace")
    kind = _KINDS.get(header.type)
    if kind is None:
        raise ArchiveRefused(f"{shown!r} is {_REFUSED.get(header.type, f'of the unknown type {header.type!r}')}")
    path = plain_path(name)
    if not path and kind is not Kind.DIRECTORY:
        raise ArchiveRefused(f"the archive has {shown!r} in the place of its own top")
    size = _number(extended["size"], 1 << 62) if "size" in extended else header.size
    if kind is not Kind.FILE and size:
        raise ArchiveRefused(f"{shown!r} is a {kind} and has content")
    mtime = _number(extended["mtime"], 1 << 40) if not extended.get("mtime", b"-").startswith(b"-") else header.mtime
    target = extended.get("linkpath", header.linkname.encode("utf-8", "surrogateescape"))
    linked: tuple[bytes, ...] = ()
    if kind is Kind.HARDLINK:
        linked = plain_path(target, f"target of the hard link {shown!r},")
    elif kind is Kind.SYMLINK and (not target or b"\0" in target or len(target) > _PATH_MAX_BYTES):
        raise ArchiveRefused(f"the link {shown!r} has no target, or one that is too long")
    return Member(path, kind, header.mode, max(0, min(int(mtime), 1 << 33)), size, target, linked)
