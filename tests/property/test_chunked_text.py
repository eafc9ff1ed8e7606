"""Output that comes in chunks is the text that it would be in one piece."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from sandfork.dialects.fields import ChunkedText, text

#: Mostly pieces of characters of every length, whole and broken, so that cuts fall within them.
OUTPUT = st.lists(
    st.one_of(
        st.sampled_from([b"a", "é".encode(), "€".encode(), "😀".encode(), b"\xf0\x9f", b"\xe2\x82", b"\xc3", b"\x80"]),
        st.binary(max_size=6),
        st.text(max_size=4).map(lambda value: value.encode("utf-8", "replace")),
    ),
    max_size=12,
).map(b"".join)


def cut(output: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(place % (len(output) + 1) for place in places), len(output)]
    return [output[start:end] for start, end in itertools.pairwise(edges)]


@given(OUTPUT, st.lists(st.integers(min_value=0), max_size=20))
def test_text_does_not_depend_on_where_it_is_cut(output: bytes, places: list[int]) -> None:
    decoder = ChunkedText()
    pieces = [decoder.add(chunk) for chunk in cut(output, places)]
    assert "".join([*pieces, decoder.end()]) == text(output)


@given(st.text().map(lambda value: value.encode("utf-8", "replace")), st.lists(st.integers(min_value=0), max_size=20))
def test_text_is_never_held_back_longer_than_its_character(output: bytes, places: list[int]) -> None:
    decoder, told, seen = ChunkedText(), "", b""
    for chunk in cut(output, places):
        told, seen = told + decoder.add(chunk), seen + chunk
        assert told == seen.decode("utf-8", "ignore")
    assert decoder.end() == ""
