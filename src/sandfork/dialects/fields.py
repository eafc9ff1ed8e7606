"""Conversions of wire fields that dialects share: JSON bodies, text, base64, durations.

Each takes the field's name as the caller wrote it, so that a refusal names it. Pure; *Raises* InvalidRequest only.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import json
import math
import re
from datetime import UTC, datetime
from typing import Any, NoReturn, TypeVar

import msgspec
from msgspec.structs import replace

from sandfork.errors import InvalidRequest
from sandfork.model import Limits

T = TypeVar("T")

EXPLAINED_BYTES = 256 << 10
"""A longer malformed body is refused without looking for what is wrong with it, which would hold up the others."""
MAX_NAME_BYTES = 255

_VALIDATION = re.compile(r"(?P<reason>.*?)(?: - at `(?P<key>key in )?\$(?P<path>.*)`)?", re.DOTALL)
_FLOAT_FOR_INTEGER = re.compile(r"Expected `int( \| null)?`, got `float`")
_MISSING = re.compile(r"Object missing required field `(?P<name>[^`]*)`")


def decode_body(decoder: msgspec.json.Decoder[T], body: bytes) -> T:
    """Decode a JSON body to the decoder's type. *Raises* InvalidRequest naming the field, "" for the whole body."""
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        if _FLOAT_FOR_INTEGER.match(str(error)):
            return _decode_whole_floats(decoder.type, body, error)
        raise _wrong_field(str(error)) from None
    except (msgspec.DecodeError, UnicodeError):
        _explain_malformed(body)
    except RecursionError:
        raise InvalidRequest("", "the JSON body is nested too deeply") from None


def _decode_whole_floats(wanted: type[T], body: bytes, error: msgspec.ValidationError) -> T:
    """Decode a body in which an integer is written as 30.0, which JSON Schema counts as an integer too."""
    try:
        value = json.loads(body if len(body) <= EXPLAINED_BYTES else b"", parse_float=_number, parse_constant=_number)
    except (ValueError, RecursionError):
        raise _wrong_field(str(error)) from None
    if _surrogate_path(value) is not None:
        _explain_malformed(body)
    try:
        return msgspec.convert(value, wanted)
    except msgspec.ValidationError as second:
        raise _wrong_field(str(second)) from None


def _number(text: str) -> int | float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("no JSON number")
    return int(number) if number.is_integer() else number


def _wrong_field(message: str) -> InvalidRequest:
    """Turn msgspec's words on a wrong field into ours."""
    match = _VALIDATION.fullmatch(message)
    reason, path = (match["reason"], match["path"] or "") if match else (message, "")
    path = path.removeprefix(".")
    missing = _MISSING.fullmatch(reason)
    if missing:
        return InvalidRequest(f"{path}.{missing['name']}" if path else missing["name"], "is required")
    if not path:
        return InvalidRequest("", f"the JSON body: {_lower(reason)}")
    return InvalidRequest(path, _lower(reason))


def _lower(reason: str) -> str:
    return (reason[:1].lower() + reason[1:]).replace("`", "")


def _explain_malformed(body: bytes) -> NoReturn:
    """Say why a body is no JSON of ours, naming the field that holds half a surrogate pair or no number."""
    if not body.strip():
        raise InvalidRequest("", "the body is empty, JSON is expected")
    if len(body) > EXPLAINED_BYTES:
        raise InvalidRequest("", "the body is not valid JSON")
    constants: list[str] = []
    try:
        value = json.loads(body, parse_constant=constants.append)
    except UnicodeDecodeError:
        raise InvalidRequest("", "the body is not valid UTF-8") from None
    except (ValueError, RecursionError):
        raise InvalidRequest("", "the body is not valid JSON") from None
    if constants:
        raise InvalidRequest("", f"the body is not valid JSON: {constants[0]} is no JSON number")
    path = _surrogate_path(value)
    if path is not None:
        raise InvalidRequest(path, "holds half a surrogate pair, which is no character")
    raise InvalidRequest("", "the body is not valid JSON")


def _surrogate_path(value: Any) -> str | None:
    """Return where in a JSON value the first string with a lone surrogate is, or None."""
    pending: list[tuple[str, Any]] = [("", value)]
    while pending:
        path, item = pending.pop()
        if isinstance(item, str) and not is_text(item):
            return path
        if isinstance(item, dict):
            for key, inner in item.items():
                if not is_text(key):
                    return path
                pending.append((f"{path}.{key}" if path else key, inner))
        elif isinstance(item, list):
            pending.extend((f"{path}[{index}]", inner) for index, inner in enumerate(item))
    return None


def is_text(value: str) -> bool:
    """Whether a string can be written as UTF-8."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def text(output: bytes) -> str:
    """Return program output as text; what is not UTF-8 becomes U+FFFD."""
    return output.decode("utf-8", "replace")


class ChunkedText:
    """The output of one stream as text, chunk by chunk: in all it is what `text` makes of the whole, however it is cut.

    A character that is not complete yet comes with the chunk that completes it.
    """

    __slots__ = ("_decoder",)

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")

    def add(self, data: bytes) -> str:
        """Return the text of a chunk, "" when it holds no whole character."""
        return self._decoder.decode(data)

    def end(self) -> str:
        """Return what is left of a character that never was completed."""
        return self._decoder.decode(b"", True)


def utf8_or_none(content: bytes) -> str | None:
    """Return bytes as text, or None when they are not UTF-8."""
    try:
        return content.decode()
    except UnicodeDecodeError:
        return None


def with_last_line(output: bytes, line: str) -> str:
    """Return program output as text, ended by a line of ours that stands alone; no line break follows it."""
    program = text(output)
    return f"{program}\n{line}" if program and not program.endswith("\n") else program + line


def timed_out_line(limits: Limits) -> str:
    """Return the line by which a run that hit its wall time is known."""
    return f"Execution timed out after {limits.wall_s:g}s"


def path_text(path: str) -> str:
    """Return a path of the sandbox as text that can be sent; bytes that are not UTF-8 become U+FFFD."""
    return path if path.isascii() else path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")


def milliseconds(seconds: float) -> float:
    """Return seconds as milliseconds with two decimals."""
    return round(seconds * 1000.0, 2)


def instant(unix_s: float) -> str:
    """Return an instant as RFC 3339 has it, in UTC and whole seconds: 2024-01-01T12:00:00Z."""
    return datetime.fromtimestamp(int(unix_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def check_code(code: str, field: str, max_bytes: int) -> str:
    """Return source code not longer than `max_bytes` as UTF-8."""
    if len(code) > max_bytes or (not code.isascii() and len(code.encode()) > max_bytes):
        raise InvalidRequest(field, f"is longer than {max_bytes} bytes")
    return code


BASE64_PATTERN = (
    "^[ \\t-\\r]*(([A-Za-z0-9+/][ \\t-\\r]*){4})*"
    "(([A-Za-z0-9+/][ \\t-\\r]*){2}(=[ \\t-\\r]*){2}|([A-Za-z0-9+/][ \\t-\\r]*){3}=[ \\t-\\r]*)?$"
)
"""What `from_base64` takes, for documents."""


class Base64:
    """The base64 of a field, piece by piece; ASCII's white space is allowed anywhere, other alphabets are not."""

    __slots__ = ("_ended", "_field", "_rest")

    def __init__(self, field: str) -> None:
        self._field = field
        self._rest = b""  # of a group of four characters
        self._ended = False

    def add(self, piece: str) -> bytes:
        """Return the bytes that are whole with this piece. *Raises* InvalidRequest."""
        if not piece.isascii():
            raise self._wrong()
        characters = self._rest + b"".join(piece.encode().split())
        whole = len(characters) - len(characters) % 4
        self._rest = characters[whole:]
        if self._ended and characters:
            raise self._wrong()
        self._ended = self._ended or characters.endswith(b"=", 0, whole)
        try:
            return binascii.a2b_base64(characters[:whole], strict_mode=True)
        except ValueError:
            raise self._wrong() from None

    def end(self) -> None:
        """Check that nothing is missing. *Raises* InvalidRequest."""
        if self._rest:
            raise self._wrong()

    def _wrong(self) -> InvalidRequest:
        return InvalidRequest(self._field, "is not valid base64")


def from_base64(value: str, field: str) -> bytes:
    """Return the bytes of a base64 field; ASCII's white space is allowed, other alphabets are not."""
    whole = Base64(field)
    content = whole.add(value)
    whole.end()
    return content


def to_base64(content: bytes) -> str:
    """Return bytes as base64 text on one line."""
    return base64.b64encode(content).decode("ascii")


def around_content(reply: msgspec.Struct, content: str = "") -> tuple[bytes, bytes]:
    """Return the JSON of a reply whose text `content` begins as given, up to there, and from there on."""
    this, longer = (msgspec.json.encode(replace(reply, content=text)) for text in (content, f"{content}x"))
    end = next(at for at, pair in enumerate(zip(this, longer, strict=False)) if pair[0] != pair[1])
    return this[:end], this[end:]


def shown(name: str) -> str:
    """Return a caller's own name, cut to fit into an error message."""
    return name if len(name) <= 80 else name[:80] + "…"
