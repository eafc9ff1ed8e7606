"""File transfer with the agent of one cell: put, collect, delete, free space.

The kernel resolves every path inside the sandbox, beneath the work directory and through no link (native/agent.h); what
comes back is data of the sandbox's and is treated as such: bounded, and matched here, not there.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fnmatch
import os
import socket
from collections.abc import Sequence

from sandfork.errors import FileNotInSandbox, GuestLost
from sandfork.model import InputFile, OutputFile
from sandfork.tiers.base import Collected
from sandfork.tiers.process import messages as m

_DIRECTORY, _REGULAR = 4, 8  # d_type of getdents64
_ENTRIES_MAX = 10_000
_DEPTH_MAX = 32
_LOOK_S = 0.5
_FILES_MAX = 1_000
_LISTINGS_MAX = 1_000  # directories read, and names seen in them, for all patterns of one collect: a program can make
_NAMES_MAX = 50_000  # any number of them, and looking costs the server, not the program


# The absolute directories of a sandbox that files can be in, and where these are below its work directory.
_WRITABLE = (("/sandbox/", ""), ("/tmp/", ".tmp/"), ("/dev/shm/", ".shm/"))


def inside_path(path: str) -> str:
    """Turn a path of the sandbox into one relative to its work directory.

    Accepts relative paths and absolute ones below /sandbox, /tmp and /dev/shm. *Raises* FileNotInSandbox.
    """
    for prefix, inside in _WRITABLE:
        if path.startswith(prefix):
            path = inside + path[len(prefix) :]
            break
    parts = [p for p in path.split("/") if p not in ("", ".")]
    if path.startswith("/") or ".." in parts or not parts or "\0" in path:
        raise FileNotInSandbox(f"{path!r} is not a path in the sandbox; use one relative to /sandbox, or below /tmp")
    return "/".join(parts)


def inside_directory(path: str) -> str:
    """Turn a directory's path into one relative to the work directory, itself included. *Raises* FileNotInSandbox."""
    for prefix, inside in _WRITABLE:
        if path.rstrip("/") + "/" == prefix:
            return inside.rstrip("/") or "."
    if not path.startswith("/") and set(path.split("/")) <= {"", "."}:
        return "."
    return inside_path(path)


class AgentClient:
    """One stream to a cell's agent; requests are answered in order, one at a time."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._lock = asyncio.Lock()
        self._closed = False
        self._in_step = True  # false while an answer is awaited, and for ever when nobody waited for it to its end
        self._frames = m.FrameReader(1 << 20)

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._sock.fileno()

    def hang_up(self) -> None:
        """Have a transfer under way fail with GuestLost."""
        if self._lock.locked():
            self._sock.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the stream; the cell ends. A transfer under way fails first: a number must not be reused under it."""
        self._closed = True
        self.hang_up()
        if not self._lock.locked():
            self._sock.close()

    def _close_if_asked(self) -> None:
        if self._closed:
            self._sock.close()

    async def _ask(self, kind: int, path: str, value: int, content: bytes = b"") -> tuple[int, list[bytes]]:
        """Return OK's number and the DATA before it. *Raises* OSError with the agent's errno, GuestLost."""
        loop = asyncio.get_running_loop()
        request = m.agent_request(kind, path, value, content)
        chunks: list[bytes] = []
        async with self._lock:
            if self._closed or not self._in_step:
                raise GuestLost("the stream to the sandbox is closed")
            self._in_step = False
            try:
                await loop.sock_sendall(self._sock, request)
                while True:
                    data = await loop.sock_recv(self._sock, 1 << 18)
                    if not data:
                        raise GuestLost("the sandbox ended during a file transfer")
                    for answer, body in self._frames.feed(data):
                        if answer == m.DATA:
                            chunks.append(body)
                            continue
                        (number,) = m.NUMBER.unpack(body)
                        self._in_step = True
                        if answer == m.OK:
                            return number, chunks
                        raise OSError(number, os.strerror(number), path)
            except (BrokenPipeError, ConnectionResetError, m.FrameError) as error:
                raise GuestLost(f"the sandbox broke off a file transfer: {error}") from error
            finally:
                self._close_if_asked()

    async def put(self, files: Sequence[InputFile]) -> None:
        """Write files, making directories. *Raises* FileNotInSandbox."""
        for file in files:
            try:
                await self._ask(m.PUT, inside_path(file.path), file.mode, file.content)
            except OSError as error:
                raise FileNotInSandbox(f"{file.path}: {error.strerror}") from error

    async def get(self, path: str, max_bytes: int) -> bytes:
        """Read one regular file. *Raises* FileNotInSandbox."""
        try:
            _, chunks = await self._ask(m.GET, inside_path(path), max_bytes)
        except OSError as error:
            raise FileNotInSandbox(f"{path}: {reason_of(error)}") from error
        return b"".join(chunks)

    async def delete(self, path: str) -> None:
        """Remove a file or an empty directory. *Raises* FileNotInSandbox."""
        try:
            await self._ask(m.DELETE, inside_path(path), 0)
        except OSError as error:
            raise FileNotInSandbox(f"{path}: {error.strerror}") from error

    async def size(self, inside: str) -> tuple[int, int]:
        """Return size and inode of a regular file; paths here are relative to the work directory. *Raises* OSError."""
        _, chunks = await self._ask(m.SIZE, inside, 0)
        if len(chunks) != 1 or len(chunks[0]) != m.INODE.size:
            raise GuestLost("a file's size in no form known here")
        size, inode = m.INODE.unpack(chunks[0])
        return size, inode

    async def read(self, inside: str, offset: int, count: int) -> tuple[bytes, int]:
        """Return a piece of a regular file, and its inode. *Raises* OSError."""
        inode, chunks = await self._ask(m.READ, inside, offset, m.NUMBER.pack(count))
        return b"".join(chunks), inode

    async def make(self, inside: str, mode: int) -> None:
        """Make a file, or an empty one of what is there, and the directories above it. *Raises* OSError."""
        await self._ask(m.PUT, inside, mode)

    async def write(self, inside: str, offset: int, piece: bytes) -> None:
        """Write a piece of a file that is there. *Raises* OSError."""
        await self._ask(m.WRITE, inside, offset, piece)

    async def remove(self, inside: str) -> None:
        """Remove a file or an empty directory. *Raises* OSError."""
        await self._ask(m.DELETE, inside, 0)

    async def discard(self, inside: str) -> None:
        """Remove a file that could not be written whole, if it can still be had."""
        with contextlib.suppress(OSError, GuestLost):
            await self.remove(inside)

    async def entries(self, inside: str) -> list[str]:
        """Return the names in a directory. *Raises* OSError."""
        _, chunks = await self._ask(m.LIST, inside, _ENTRIES_MAX)
        return [os.fsdecode(chunk[9:]) for chunk in chunks]

    async def kill_all(self) -> None:
        """Kill every process of the sandbox but its init. *Raises* OSError, GuestLost."""
        await self._ask(m.KILL, ".", 0)

    async def free_bytes(self) -> int:
        """Return the bytes free in the work directory's file system, 0 when it has no inode left."""
        number, _ = await self._ask(m.STAT, ".", 0)
        return number

    async def disk_is_full(self) -> bool:
        """Tell whether that file system has no room left; one that does not answer soon is not said to be full."""
        try:
            async with asyncio.timeout(_LOOK_S):
                return await self.free_bytes() == 0
        except (GuestLost, OSError, TimeoutError):
            return False

    async def listing(self, path: str = ".") -> list[tuple[str, int, int]]:
        """Return (name, d_type, size) of a directory's entries. *Raises* FileNotInSandbox."""
        try:
            _, chunks = await self._ask(m.LIST, path, _ENTRIES_MAX)
        except OSError as error:
            raise FileNotInSandbox(f"{path}: {error.strerror}") from error
        entries = []
        for chunk in chunks:
            if len(chunk) < 9:
                raise GuestLost("a directory entry without a name")
            entries.append((os.fsdecode(chunk[9:]), chunk[8], m.NUMBER.unpack_from(chunk)[0]))
        return sorted(entries)

    async def collect(self, patterns: Sequence[str], max_bytes: int) -> Collected:
        """Read what matches paths or globs (`*`, `?`, `[...]`, `**` for any depth), at most `max_bytes` in all.

        A pattern whose search had to be given up is named among the skipped, beside what it found.
        """
        files: dict[str, OutputFile] = {}
        search = _Search(self)
        left = max_bytes
        for pattern in patterns:
            for path in await search.matches(pattern):
                if path in files:
                    continue
                try:
                    if len(files) == _FILES_MAX:
                        raise FileNotInSandbox(f"{path}: more than {_FILES_MAX} files")
                    content = await self.get(path, left)
                except FileNotInSandbox:
                    search.skipped.append(path)
                    continue
                left -= len(content)
                files[path] = OutputFile(path, content)
        return Collected(tuple(files.values()), tuple(search.skipped))


class _Search:
    """Looks for what patterns match, and gives up when there is too much to look at."""

    def __init__(self, agent: AgentClient) -> None:
        self.skipped: list[str] = []
        self._agent = agent
        self._listings = 0
        self._names = 0
        self._seen: set[tuple[str, int]] = set()

    async def matches(self, pattern: str) -> list[str]:
        """Return the regular files that `pattern` matches, spelt as it spells them."""
        if not any(c in pattern for c in "*?["):
            return [pattern]
        found: dict[str, None] = {}
        passed_over: list[str] = []
        self._seen.clear()
        await self._walk("", inside_path(pattern).split("/"), found, passed_over, 0)
        self.skipped += (_as_asked(pattern, path) for path in passed_over)
        if self._spent:
            self.skipped.append(pattern)
        return [_as_asked(pattern, path) for path in found]

    @property
    def _spent(self) -> bool:
        return self._listings >= _LISTINGS_MAX or self._names >= _NAMES_MAX

    async def _walk(self, base: str, parts: list[str], found: dict[str, None], skipped: list[str], depth: int) -> None:
        # Of two ways to the same directory with the same rest of the pattern, the second finds nothing new.
        if not parts or depth > _DEPTH_MAX or len(found) >= _FILES_MAX or (base, len(parts)) in self._seen:
            return
        self._seen.add((base, len(parts)))
        head, rest = parts[0], parts[1:]
        if head == "**":
            await self._walk(base, rest, found, skipped, depth)
        for name, kind in await self._names_in(base):
            path = f"{base}/{name}" if base else name
            if name.startswith(".") and not head.startswith("."):
                continue
            if kind == _DIRECTORY and head == "**":
                await self._walk(path, parts, found, skipped, depth + 1)
            if head == "**" or not fnmatch.fnmatchcase(name, head):
                continue
            if rest and kind == _DIRECTORY:
                await self._walk(path, rest, found, skipped, depth + 1)
            elif not rest and kind == _REGULAR:
                found[path] = None
            elif not rest and kind != _DIRECTORY:
                skipped.append(path)

    async def _names_in(self, directory: str) -> list[tuple[str, int]]:
        """Return (name, d_type) of a directory's entries; nothing of one that cannot be read, or when given up."""
        if self._spent:
            return []
        self._listings += 1
        try:
            entries = await self._agent.listing(directory or ".")
        except FileNotInSandbox:
            return []
        self._names += len(entries)
        return [(name, kind) for name, kind, _ in entries]


def _as_asked(pattern: str, path: str) -> str:
    """Return a path found below the work directory as `pattern` would spell it."""
    for prefix, inside in _WRITABLE:
        if pattern.startswith(prefix):
            return prefix + path.removeprefix(inside)
    return path


def reason_of(error: OSError) -> str:
    """Say why the agent would not, in words for who asked."""
    if error.errno == errno.EFBIG:
        return "larger than what may be collected"
    if error.errno == errno.EINVAL:
        return "not a regular file"
    return error.strerror or "unreadable"
