"""Take one long text out of a JSON body as it arrives: the base64 of a file, which must not be held as a whole.

What is left of the body, with "" in the text's place, is small and is decoded as any other. Only the structure that
tells the field is followed here: the body is valid exactly when what is left of it and the text are.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator

import msgspec

from sandfork.dialects.fields import Base64
from sandfork.errors import InvalidRequest, PayloadTooLarge
from sandfork.http.exchange import Exchange
from sandfork.http.forms import Room, Spool

_STRUCTURE = re.compile(rb'[^"{}\[\]:,]*')
_CHARACTERS = re.compile(rb'[^"\\]*(?:\\(?:u[0-9a-fA-F]{4}|[^u])[^"\\]*)*', re.DOTALL)
LONGEST_ESCAPE = 6
REST_BYTES = 256 << 10
"""The most that all other fields may take together: all of them are gone through sign by sign."""
PIECE_BYTES = 16 << 10
"""What is gone through at once, which takes some hundred times as much memory where it is all escapes."""
MOST_OF_TEXT = 3, 2
"""How much longer the text may be than the file: base64 with escaped slashes, plus signs and line breaks."""

_text: msgspec.json.Decoder[str] = msgspec.json.Decoder(str)


class Lifter:
    """Takes the text of the field `name` out of a JSON object, wherever its bytes are cut. `rest` is what is left."""

    def __init__(self, name: str) -> None:
        self.rest = bytearray()
        self._name = name
        self._longest_key = len(name) * LONGEST_ESCAPE
        self._base64 = Base64(name)
        self._held = b""  # what is no whole escape yet
        self._depth = 0
        self._key: bytearray | None = None  # what is known of the key that is being read
        self._at_key = False
        self._named = False  # the key that was read last is `name`
        self._in_text = False
        self._lifting = False
        self._lifted = False

    def add(self, data: bytes) -> bytes:
        """Return what of the file is in the next bytes. *Raises* InvalidRequest."""
        data, self._held = self._held + data, b""
        found, at = bytearray(), 0
        while at < len(data):
            at = self._go_through_text(data, at, found) if self._in_text else self._go_on(data, at)
        return bytes(found)

    def end(self) -> None:
        """Check that the text is whole. *Raises* InvalidRequest."""
        if self._in_text:
            raise _malformed()
        self._base64.end()

    def _go_on(self, data: bytes, at: int) -> int:
        """Pass by what is between two texts, up to and with the next sign that matters."""
        match = _STRUCTURE.match(data, at)
        assert match is not None  # it matches nothing, too
        end = match.end() + 1
        self.rest += data[at:end]
        sign = data[end - 1 : end] if end <= len(data) else b""
        if sign == b'"':
            self._begin_text()
        elif sign in (b"{", b"["):
            self._depth += 1
            self._at_key = self._depth == 1 and sign == b"{"
            self._named = False
        elif sign in (b"}", b"]"):
            self._depth -= 1
            self._at_key = self._named = False
        elif sign == b"," and self._depth == 1:
            self._at_key, self._named = True, False
        elif sign == b":" and self._depth == 1:
            self._at_key = False
        return min(end, len(data))

    def _begin_text(self) -> None:
        self._in_text = True
        self._key = bytearray() if self._at_key else None
        self._lifting = self._named and not self._at_key
        if self._lifting and self._lifted:
            raise InvalidRequest(self._name, "is given twice")
        self._lifted |= self._lifting

    def _go_through_text(self, data: bytes, at: int, found: bytearray) -> int:
        """Pass by the characters of a text, up to and with its end."""
        match = _CHARACTERS.match(data, at)
        assert match is not None
        characters, end = data[at : match.end()], match.end()
        if self._lifting:
            found += self._base64.add(_plain(characters))
        else:
            self.rest += characters
            if self._key is not None and len(self._key) <= self._longest_key:
                self._key += characters
        if data[end : end + 1] == b'"':
            self._end_text()
            return end + 1
        if len(data) - end >= LONGEST_ESCAPE:
            raise _malformed()
        self._held = data[end:]
        return len(data)

    def _end_text(self) -> None:
        self.rest += b'"'
        self._in_text = self._lifting = False
        if self._key is not None:
            self._named = len(self._key) <= self._longest_key and self._is_name(bytes(self._key))
            self._at_key = False
            self._key = None

    def _is_name(self, key: bytes) -> bool:
        try:
            return _plain(key) == self._name
        except InvalidRequest:
            return False  # whether the body is valid is for who decodes what is left


def _plain(characters: bytes) -> str:
    """Return the text that a JSON string of these characters is. *Raises* InvalidRequest."""
    try:
        return _text.decode(b'"' + characters + b'"')
    except (msgspec.DecodeError, UnicodeError):
        raise _malformed() from None


def _malformed() -> InvalidRequest:
    return InvalidRequest("", "the body is not valid JSON")


class Lifted:
    """A JSON body of which the file was taken out: its other fields are the exchange's body, the file is in `spool`."""

    def __init__(self, room: Room, name: str, max_file_bytes: int) -> None:
        self.spool = Spool(room)
        self._lifter = Lifter(name)
        self._max_file_bytes = max_file_bytes

    async def read(self, exchange: Exchange, chunks: AsyncIterator[bytes]) -> None:
        """Read a request's body. *Raises* InvalidRequest, PayloadTooLarge, Overloaded."""
        lifter = self._lifter
        async for chunk in chunks:
            pieces = (chunk[start : start + PIECE_BYTES] for start in range(0, len(chunk), PIECE_BYTES))
            await self.spool.write(b"".join(lifter.add(piece) for piece in pieces))
            if self.spool.size_bytes > self._max_file_bytes:
                raise PayloadTooLarge(self._max_file_bytes)
            if len(lifter.rest) > REST_BYTES:
                raise PayloadTooLarge(REST_BYTES)
        lifter.end()
        exchange.keep_body(bytes(lifter.rest))

    def close(self) -> None:
        """Forget the file."""
        self.spool.close()


def body_bytes(max_file_bytes: int) -> int:
    """Return how large a body may be that has a file of that size in it."""
    more, per = MOST_OF_TEXT
    return max_file_bytes * more // per + REST_BYTES
