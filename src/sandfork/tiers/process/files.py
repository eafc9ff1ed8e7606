"""The files of a kept sandbox, moved in pieces: each is one request of its own to the agent.

So a transfer of any size takes bounded memory on both sides, and a slow one keeps nobody waiting. The pieces of a
transfer are of one file: its inode is told with each, and another in its place ends the transfer.
"""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterable, AsyncIterator, Coroutine, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from sandfork.errors import DiskFull, FileNotInSandbox, FileTooLarge
from sandfork.model import FileEntry
from sandfork.tiers.process.agent import AgentClient, inside_directory, inside_path, reason_of

if TYPE_CHECKING:
    from sandfork.tiers.process.slots import Tasks

T = TypeVar("T")
PIECE_BYTES = 256 << 10
_KINDS = {4: "directory", 8: "file", 10: "link"}  # d_type of getdents64
_DELETED_MAX = 100_000


class SandboxFiles:
    """See `tiers.base.Files`."""

    def __init__(self, agent: AgentClient, tasks: Tasks) -> None:
        self._agent = agent
        self._tasks = tasks

    async def _whole(self, request: Coroutine[Any, Any, T], path: str) -> T:
        """Make one request to its end, also when nobody waits for it any more: the stream must stay in step.

        *Raises* FileNotInSandbox for what the agent refuses, DiskFull.
        """
        try:
            return await asyncio.shield(self._tasks.spawn(request))
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                reason = "the sandbox's disk is full: remove files, or make it with a larger limits.disk_bytes"
                raise DiskFull(f"{path}: {reason}") from error
            raise FileNotInSandbox(f"{path}: {reason_of(error)}") from error

    async def list(self, path: str) -> Sequence[FileEntry]:
        """Return the entries of a directory, sorted by name."""
        inside = inside_directory(path)
        found = await self._whole(self._agent.listing(inside), path)
        ours = (".tmp", ".shm") if inside == "." else ()
        return [
            FileEntry(name, kind := _KINDS.get(entry_type, "other"), size if kind == "file" else 0)
            for name, entry_type, size in found
            if name not in ours
        ]

    async def read(self, path: str, max_bytes: int) -> tuple[int, AsyncIterator[bytes]]:
        """Return the size of a regular file and as much content, in pieces."""
        inside = inside_path(path)
        size, inode = await self._whole(self._agent.size(inside), path)
        if size > max_bytes:
            raise FileTooLarge(path, max_bytes)
        return size, self._pieces(path, inside, size, inode)

    async def _pieces(self, path: str, inside: str, size: int, first: int) -> AsyncIterator[bytes]:
        at = 0
        while at < size:
            piece, inode = await self._whole(self._agent.read(inside, at, min(PIECE_BYTES, size - at)), path)
            if inode != first or not piece:
                raise FileNotInSandbox(f"{path}: changed while it was read")
            at += len(piece)
            yield piece

    async def write(self, path: str, chunks: AsyncIterable[bytes], mode: int = 0o644) -> int:
        """Write a file as its content arrives; return its size. What fails leaves no file."""
        inside = inside_path(path)
        await self._whole(self._agent.make(inside, mode), path)
        at, done = 0, False
        try:
            async for chunk in chunks:
                for start in range(0, len(chunk), PIECE_BYTES):
                    piece = chunk[start : start + PIECE_BYTES]
                    await self._whole(self._agent.write(inside, at, piece), path)
                    at += len(piece)
            done = True
        finally:
            if not done:
                self._tasks.spawn(self._agent.discard(inside))
        return at

    async def delete(self, path: str) -> None:
        """Remove a file, or a directory with all in it."""
        await self._whole(self._delete_all(inside_path(path)), path)

    async def _delete_all(self, inside: str) -> None:
        """Remove what is there, the deepest first. A program that makes files meanwhile can have it fail."""
        waiting, left = [inside], _DELETED_MAX
        while waiting and left:
            left -= 1
            path = waiting[-1]
            try:
                await self._agent.remove(path)
                waiting.pop()
            except OSError:
                entries = await self._agent.entries(path)
                if not entries:
                    raise
                waiting += [f"{path}/{name}" for name in entries[:_DELETED_MAX]]
        if waiting:
            raise FileNotInSandbox(f"{inside}: more than {_DELETED_MAX} files")
