"""Read forms: the fields of one, and at most one file, which is kept in memory or, above a size, in a file on disk.

A form's fields may come after its file, and what is to be done with the file is only known from the fields; so the file
is taken in before anything is done. It has no name on disk, so that nothing of it can be left, and all files of all
forms together may take `SPOOLED_BYTES`.
"""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from typing import IO
from urllib.parse import parse_qsl

import multipart

from sandfork.dialects.base import FormFile
from sandfork.dialects.refusals import UnsupportedMedia
from sandfork.errors import InvalidRequest, Overloaded, PayloadTooLarge
from sandfork.http.exchange import Exchange

URLENCODED = "application/x-www-form-urlencoded"
MULTIPART = "multipart/form-data"

FORM_TYPES = (URLENCODED.encode(), MULTIPART.encode())

FIELDS_BYTES = 1 << 20
"""The most that all fields of a form may take together."""
MOST_PARTS = 64
IN_MEMORY_BYTES = 1 << 20
"""A larger file is kept on disk."""
SPOOLED_BYTES = 2 << 30
CHUNK_BYTES = 256 << 10


class Room:
    """How much of the disk forms may still take."""

    def __init__(self, size_bytes: int = SPOOLED_BYTES) -> None:
        self.left_bytes = size_bytes

    def take(self, size_bytes: int) -> None:
        """Take some. *Raises* Overloaded when there is not as much."""
        if size_bytes > self.left_bytes:
            raise Overloaded("too many uploads are under way", retry_after_s=1.0)
        self.left_bytes -= size_bytes

    def give_back(self, size_bytes: int) -> None:
        """Give back what was taken."""
        self.left_bytes += size_bytes


class Spool:
    """The content of one file while its request is served."""

    def __init__(self, room: Room) -> None:
        self._room = room
        self._file: IO[bytes] | None = None
        self._memory = bytearray()
        self.size_bytes = 0

    async def write(self, data: bytes) -> None:
        """Add to it. *Raises* Overloaded when the disk is full."""
        if self._file is None and self.size_bytes + len(data) <= IN_MEMORY_BYTES:
            self._memory += data
            self.size_bytes += len(data)
            return
        size_bytes = len(data) if self._file else self.size_bytes + len(data)
        self._room.take(size_bytes)
        if self._file is None:
            self._file = tempfile.TemporaryFile(buffering=0)  # noqa: SIM115  # closed by `close`
            data, self._memory = bytes(self._memory) + data, bytearray()
            self.size_bytes = 0
        self.size_bytes += len(data)
        try:
            await asyncio.to_thread(_write_all, self._file, data)
        except OSError:
            raise Overloaded("there is no room for an upload", retry_after_s=1.0) from None

    async def chunks(self) -> AsyncIterator[bytes]:
        """Yield it from its beginning."""
        if self._file is None:
            if self._memory:
                yield bytes(self._memory)
            return
        await asyncio.to_thread(self._file.seek, 0)
        while chunk := await asyncio.to_thread(self._file.read, CHUNK_BYTES):
            yield chunk

    def close(self) -> None:
        """Forget it."""
        if self._file is not None:
            self._file.close()
            self._file = None
            self._room.give_back(self.size_bytes)
        self._memory = bytearray()


def _write_all(file: IO[bytes], data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


class Form:
    """A form that was read: its fields, the last of a name, and its file."""

    def __init__(self, room: Room) -> None:
        self.fields: dict[str, str] = {}
        self.file: FormFile | None = None
        self.spool = Spool(room)
        self._fields_bytes = 0

    def fits(self, exchange: Exchange) -> bool:
        """Whether the request says that its body is a form."""
        return exchange.headers.get(b"content-type", b"").partition(b";")[0].strip().lower() in FORM_TYPES

    async def read(self, exchange: Exchange, chunks: AsyncIterator[bytes]) -> None:
        """Read a request's body, and tell the exchange. *Raises* UnsupportedMedia, CallerError, Overloaded."""
        header = exchange.headers.get(b"content-type", b"").decode("latin-1")
        essence, options = multipart.parse_options_header(header)
        if essence == URLENCODED:
            await self._read_urlencoded(chunks)
        elif essence == MULTIPART:
            await self._read_multipart(options.get("boundary", ""), chunks)
        else:
            raise UnsupportedMedia(f"the body must be a form: content-type {MULTIPART} or {URLENCODED}")
        exchange.form, exchange.file = self.fields, self.file

    async def _read_urlencoded(self, chunks: AsyncIterator[bytes]) -> None:
        body = bytearray()
        async for chunk in chunks:
            body += chunk
            self._count(len(chunk))
        try:
            pairs = parse_qsl(body.decode(), keep_blank_values=True, errors="strict", max_num_fields=MOST_PARTS)
        except ValueError:
            raise InvalidRequest("", "the body is not a valid form") from None
        self.fields.update(pairs)

    async def _read_multipart(self, boundary: str, chunks: AsyncIterator[bytes]) -> None:
        try:
            # Its strict mode refuses a line break after the last boundary when it comes in a chunk of its own.
            with multipart.PushMultipartParser(boundary, max_segment_count=MOST_PARTS) as parser:
                part = _Part("", None)
                async for chunk in chunks:
                    for event in parser.parse(chunk):
                        if isinstance(event, multipart.MultipartSegment):
                            part = self._begin(event)
                        elif event is None:
                            self._end(part)
                        elif part.filename is not None:
                            await self.spool.write(event)
                        else:
                            self._count(len(event))
                            part.value += event
        except multipart.MultipartError as error:
            raise InvalidRequest("", f"the body is not a valid form: {error}") from None

    def _begin(self, segment: multipart.MultipartSegment) -> _Part:
        part = _Part(segment.name or "", segment.filename)
        if part.filename is not None and self.file is not None:
            raise InvalidRequest(part.name, "is a second file, and only one is taken")
        if part.filename is not None:
            self.file = FormFile(part.name, part.filename, 0)
        return part

    def _end(self, part: _Part) -> None:
        if part.filename is not None:
            self.file = FormFile(part.name, part.filename, self.spool.size_bytes)
            return
        try:
            self.fields[part.name] = part.value.decode()
        except UnicodeDecodeError:
            raise InvalidRequest(part.name, "is not valid UTF-8") from None

    def _count(self, size_bytes: int) -> None:
        self._fields_bytes += size_bytes
        if self._fields_bytes > FIELDS_BYTES:
            raise PayloadTooLarge(FIELDS_BYTES)

    def close(self) -> None:
        """Forget its file."""
        self.spool.close()


class _Part:
    """A part of a form on its way; a file's goes elsewhere."""

    __slots__ = ("filename", "name", "value")

    def __init__(self, name: str, filename: str | None) -> None:
        self.name = name
        self.filename = filename
        self.value = bytearray()
