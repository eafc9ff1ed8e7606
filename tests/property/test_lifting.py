"""A file that is taken out of a JSON body as it arrives is the one that decoding the whole body gives."""

from __future__ import annotations

import base64
import itertools
import json
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from sandfork.dialects.fields import from_base64
from sandfork.errors import InvalidRequest
from sandfork.http.lifting import Lifter


class Body(msgspec.Struct):
    content: str
    path: str = ""


WHOLE = msgspec.json.Decoder(Body)
CUTS = st.lists(st.integers(min_value=0), max_size=12)
#: What else may stand beside the field, names of nearly the same kind among it.
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-9, 9), st.text(max_size=6), st.just("content")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["content", "a", '"', "\\"]), inner),
    max_leaves=8,
)
NAMES = st.sampled_from(["a", "contents", "conten", '"content"', "content\\", "é", ""])
CONTENTS = st.one_of(
    st.binary(max_size=40).map(lambda data: base64.b64encode(data).decode()),
    st.binary(max_size=40).map(lambda data: base64.encodebytes(data).decode()),
    st.text(alphabet='AQg=/+ \n\\"é', max_size=12),
)


def escaped(text: str, how: int) -> str:
    """Write a JSON string with some of its characters as escapes that nobody has to use."""
    written = json.dumps(text, ensure_ascii=how % 2 == 0)
    if how & 2:
        written = written.replace("/", "\\/")
    if how & 4:
        written = written.replace("+", "\\u002B").replace("=", "\\u003d").replace("co", "\\u0063o")
    return written


@st.composite
def bodies(draw: Any) -> bytes:
    """A body with the field at any place among others."""
    fields = draw(st.dictionaries(NAMES, VALUES, max_size=4))
    content = draw(st.one_of(CONTENTS, VALUES))
    pairs = [(name, json.dumps(value)) for name, value in fields.items()]
    how = draw(st.integers(0, 7))
    value = escaped(content, how) if isinstance(content, str) else json.dumps(content)
    pairs.insert(draw(st.integers(0, len(pairs))), ("content", value))
    space = draw(st.sampled_from(["", " ", "\n"]))
    inside = f"{space},{space}".join(f"{escaped(name, how)}{space}:{space}{value}" for name, value in pairs)
    return f"{space}{{{inside}}}{space}".encode()


def decoded(body: bytes) -> bytes | None:
    """Return the file of a body that is decoded as a whole, None for a body that is refused."""
    try:
        return from_base64(WHOLE.decode(body).content, "content")
    except (msgspec.DecodeError, UnicodeError, InvalidRequest):
        return None


def lifted(body: bytes, places: list[int]) -> bytes | None:
    """Return the same of a body that arrives in pieces."""
    edges = [0, *sorted(place % (len(body) + 1) for place in places), len(body)]
    lifter, found = Lifter("content"), b""
    try:
        for start, end in itertools.pairwise(edges):
            found += lifter.add(body[start:end])
        lifter.end()
        rest = WHOLE.decode(bytes(lifter.rest))
    except (msgspec.DecodeError, UnicodeError, InvalidRequest):
        return None
    assert rest.content == ""
    return found


def one_by_one(body: bytes) -> list[int]:
    return list(range(len(body)))


@given(bodies(), CUTS)
def test_a_file_does_not_depend_on_where_its_body_is_cut(body: bytes, places: list[int]) -> None:
    assert lifted(body, places) == lifted(body, one_by_one(body)) == decoded(body)


@given(bodies(), st.integers(min_value=0), st.sampled_from(list(b'"\\{}[],: =\x00\xc3u')), CUTS)
def test_a_body_with_a_wrong_byte_is_refused_as_if_it_were_decoded_as_a_whole(
    body: bytes, at: int, wrong: int, places: list[int]
) -> None:
    at %= len(body)
    broken = body[:at] + bytes([wrong]) + body[at + 1 :]
    if (expected := decoded(broken)) is None or broken.count(b"content") == 1:
        assert lifted(broken, places) == lifted(broken, one_by_one(broken)) == expected


@given(bodies(), st.integers(min_value=0), CUTS)
def test_a_body_that_ends_too_early_is_refused(body: bytes, length: int, places: list[int]) -> None:
    short = body.rstrip()[: length % len(body.strip())]
    assert lifted(short, places) is None


def test_a_field_that_is_given_twice_is_refused() -> None:
    assert lifted(b'{"content": "QQ==", "content": "QQ=="}', []) is None


@given(st.one_of(CONTENTS, st.text(alphabet="AQg=_-", max_size=9)))
def test_base64_is_what_the_standard_library_takes_it_for(text: str) -> None:
    try:
        wanted = base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        wanted = None
    try:
        found = from_base64(text, "f")
    except InvalidRequest:
        found = None
    assert found == wanted
