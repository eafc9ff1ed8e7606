"""Secrets in output: masked whatever the chunks, and nothing else is held back or changed."""

from __future__ import annotations

import pytest

from sandfork.engine.masking import MAX_SECRETS_BYTES, Mask, Secrets, StreamMask
from sandfork.errors import InvalidRequest
from sandfork.model import Display, Stream


class Kept:
    """A sink that keeps what it is given, and says what it is told to."""

    def __init__(self) -> None:
        self.chunks: list[tuple[Stream, bytes]] = []
        self.displays: list[Display] = []
        self.wants_more = True

    def output(self, stream: Stream, data: bytes) -> bool:
        self.chunks.append((stream, data))
        return self.wants_more

    def display(self, shown: Display) -> None:
        self.displays.append(shown)

    def whole(self, stream: Stream) -> bytes:
        return b"".join(data for each, data in self.chunks if each is stream)


def masked(secrets: list[str], *chunks: bytes, cut: bool = False) -> bytes:
    sink = Kept()
    mask = Mask(sink, Secrets(secrets))
    for chunk in chunks:
        mask.output(Stream.STDOUT, chunk)
    mask.flush(cut=cut)
    return sink.whole(Stream.STDOUT)


@pytest.mark.parametrize(
    ("secrets", "chunks", "shown"),
    [
        (["hunter2"], [b"password: hunter2\n"], b"password: ***\n"),
        (["hunter2"], [b"password: hun", b"ter2\n"], b"password: ***\n"),
        (["hunter2"], [b"h", b"u", b"n", b"t", b"e", b"r", b"2"], b"***"),
        (["hunter2"], [b"hunter", b"1 hunter"], b"hunter1 hunter"),
        (["ab", "abcd"], [b"abc", b"d abce"], b"*** ***ce"),
        (["abcd", "bc"], [b"abc", b"e bc"], b"a***e ***"),
        (["abc", "cde"], [b"abcde cde"], b"*** ***"),
        (["abc"], [b"abcabc"], b"******"),
        (["aa"], [b"a", b"a", b"a", b"a", b"a b aa"], b"*** b ***"),
        (["aab"], [b"aaab"], b"a***"),
        (["", "x"], [b"axb"], b"a***b"),
        (["ä"], [b"\xc3", b"\xa4\xff"], b"***\xff"),
        (["\n]^-\\"], [b"a\n]^-\\b"], b"a***b"),
        ([""], [b"all"], b"all"),
    ],
)
def test_every_occurrence_becomes_one_mark(secrets: list[str], chunks: list[bytes], shown: bytes) -> None:
    assert masked(secrets, *chunks) == shown


def test_what_cannot_be_the_beginning_of_a_secret_is_passed_on_at_once() -> None:
    sink = Kept()
    mask = Mask(sink, Secrets(["hunter2"]))
    mask.output(Stream.STDOUT, b"password: hunt")
    assert sink.whole(Stream.STDOUT) == b"password: "
    mask.output(Stream.STDOUT, b"ing h")
    assert sink.whole(Stream.STDOUT) == b"password: hunting "
    mask.flush()
    assert sink.whole(Stream.STDOUT) == b"password: hunting h"


def test_streams_are_masked_each_by_itself() -> None:
    sink = Kept()
    mask = Mask(sink, Secrets(["secret"]))
    mask.output(Stream.STDOUT, b"sec")
    mask.output(Stream.STDERR, b"ret sec")
    mask.output(Stream.STDOUT, b"ret")
    mask.output(Stream.STDERR, b"ret")
    mask.flush()
    assert (sink.whole(Stream.STDOUT), sink.whole(Stream.STDERR)) == (b"***", b"ret ***")


def test_the_beginning_of_a_secret_at_a_cut_is_masked_and_at_a_true_end_it_is_not() -> None:
    assert masked(["hunter2"], b"a hunte", cut=True) == b"a ***"
    assert masked(["hunter2"], b"a hunte") == b"a hunte"
    assert masked(["aa"], b"aaa", cut=True) == b"***"
    assert masked(["hunter2"], b"a b", cut=True) == b"a b"


def test_a_sink_that_wants_no_more_is_heard_and_one_that_was_given_nothing_is_not_asked() -> None:
    sink = Kept()
    mask = Mask(sink, Secrets(["hunter2"]))
    sink.wants_more = False
    assert mask.output(Stream.STDOUT, b"hunte")
    assert not mask.output(Stream.STDOUT, b"rs")
    assert sink.chunks == [(Stream.STDOUT, b"hunters")]


def test_rich_values_are_masked_in_every_text_they_hold() -> None:
    sink = Kept()
    Mask(sink, Secrets(["hunter2"])).display(
        Display("result", {"text/plain": "'hunter2'", "text/html": "<b>hunter2</b>", "image/png": "aGk="})
    )
    assert sink.displays == [Display("result", {"text/plain": "'***'", "text/html": "<b>***</b>", "image/png": "aGk="})]


def test_too_many_secrets_and_those_that_are_no_text_are_refused() -> None:
    Secrets(["x" * MAX_SECRETS_BYTES, "x" * MAX_SECRETS_BYTES])
    for wrong in (["x" * MAX_SECRETS_BYTES, "y"], ["a\ud800"]):
        with pytest.raises(InvalidRequest) as refused:
            Secrets(wrong)
        assert refused.value.field == "secrets"


def test_no_secrets_are_nothing_to_look_for() -> None:
    assert not Secrets([])
    assert not Secrets([""])
    assert Secrets(["", "a"])


def test_never_more_is_held_back_than_the_longest_secret_has() -> None:
    stream = StreamMask(Secrets(["ab" * 50]))
    passed = sum(len(stream.feed(b"ab")) for _ in range(49))
    assert passed == 0
    passed += sum(len(stream.feed(b"a")) for _ in range(1000))
    assert passed >= 49 * 2 + 1000 - 100
