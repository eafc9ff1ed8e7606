"""Rich values that a program sends are what they should be, or end it."""

from __future__ import annotations

import json

import pytest

from sandfork.model import Display, Outcome
from sandfork.tiers.process.displays import Showing, read_display
from tests.support.process import Tape


def test_a_value_is_read_as_it_was_sent() -> None:
    body = json.dumps({"kind": "result", "data": {"text/plain": "ä"}, "more": 1}).encode()
    assert read_display(body) == Display("result", {"text/plain": "ä"})


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"null",
        b"[]",
        b'{"kind": "result"}',
        b'{"kind": "else", "data": {}}',
        b'{"kind": ["result"], "data": {}}',
        b'{"kind": "result", "data": []}',
        b'{"kind": "result", "data": {"a": 1}}',
        b'{"kind": "result", "data": {"a": "\\ud800"}}',
        b'{"kind": "result", "data": {"\\ud800": "a"}}',
        b"[" * 200_000,
    ],
)
def test_what_is_no_value_ends_the_program(body: bytes) -> None:
    assert read_display(body) is None
    assert Showing(Tape()).take(body) is Outcome.POLICY_VIOLATION


def test_too_many_values_and_too_large_ones_end_the_program() -> None:
    body = json.dumps({"kind": "display", "data": {}}).encode()
    showing = Showing(tape := Tape())
    for _ in range(1000):
        assert showing.take(body) is None
    assert showing.take(body) is Outcome.OUTPUT_LIMIT
    assert len(tape.displays) == 1000
    large = json.dumps({"kind": "display", "data": {"a": "x" * (8 << 20)}}).encode()
    showing = Showing(tape)
    assert [showing.take(large) for _ in range(4)] == [None, None, None, Outcome.OUTPUT_LIMIT]
