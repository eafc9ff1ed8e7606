"""Masking a stream is masking the whole of it, wherever it is cut, and nothing of a secret is passed on."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from sandfork.engine.masking import MARK, Secrets, StreamMask

letters = st.text("abc", max_size=6)
texts = st.lists(letters, max_size=5) | st.lists(st.text(max_size=4), max_size=5)


@st.composite
def outputs(draw: st.DrawFn) -> tuple[list[str], bytes]:
    """Return secrets and an output in which some of them, or parts of them, are likely to be."""
    secrets = draw(texts)
    part = letters | st.text(max_size=3) | st.sampled_from([*secrets, "a"]) | st.sampled_from([*secrets, "b"])
    return secrets, "".join(draw(st.lists(part, max_size=12))).encode()


def expected(secrets: list[str], output: bytes) -> bytes:
    """Mask the slow and obvious way: mark what each occurrence covers, then write one mark for each run."""
    words = {secret.encode() for secret in secrets} - {b""}
    spans = sorted((i, i + len(w)) for w in words for i in range(len(output)) if output.startswith(w, i))
    runs: list[tuple[int, int]] = []
    for start, end in spans:
        if runs and start < runs[-1][1]:
            runs[-1] = runs[-1][0], max(end, runs[-1][1])
        else:
            runs.append((start, end))
    parts, at = [], 0
    for start, end in runs:
        parts += output[at:start], MARK
        at = end
    return b"".join([*parts, output[at:]])


def in_chunks(output: bytes, cuts: list[int]) -> list[bytes]:
    places = sorted({0, len(output), *(cut % (len(output) + 1) for cut in cuts)})
    return [output[start:end] for start, end in pairwise(places)]


@given(outputs(), st.lists(st.integers(0, 1000), max_size=8))
def test_masking_chunks_is_masking_the_whole(case: tuple[list[str], bytes], cuts: list[int]) -> None:
    secrets, output = case
    stream = StreamMask(Secrets(secrets))
    shown = b"".join(stream.feed(chunk) for chunk in in_chunks(output, cuts))
    assert shown + stream.rest() == expected(secrets, output)


@given(outputs(), st.lists(st.integers(0, 1000), max_size=8))
def test_what_is_passed_on_of_a_cut_output_shows_no_beginning_of_a_secret_at_its_end(
    case: tuple[list[str], bytes], cuts: list[int]
) -> None:
    secrets, output = case
    stream = StreamMask(Secrets(secrets))
    shown = b"".join(stream.feed(chunk) for chunk in in_chunks(output, cuts)) + stream.rest(cut=True)
    beginnings = {s.encode()[:n] for s in secrets for n in range(1, len(s.encode()) + 1)}
    assert not any(shown.endswith(each) for each in beginnings if b"*" not in each)


@given(outputs(), st.lists(st.integers(0, 1000), max_size=8))
def test_at_no_time_is_a_whole_secret_among_what_was_passed_on(case: tuple[list[str], bytes], cuts: list[int]) -> None:
    secrets, output = case
    stream, shown = StreamMask(Secrets(secrets)), b""
    for chunk in in_chunks(output, cuts):
        shown += stream.feed(chunk)
        plain = shown.split(MARK)
        assert not any(s.encode() in part for s in secrets if s for part in plain if b"*" not in part)


@given(outputs())
def test_text_is_masked_as_a_stream_of_its_bytes_is(case: tuple[list[str], bytes]) -> None:
    secrets, output = case
    assert Secrets(secrets).mask_text(output.decode()).encode() == expected(secrets, output)
