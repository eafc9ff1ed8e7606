"""Wire conversions: every malformed body is refused with the field at fault, and text is always sendable."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from sandfork.dialects import fields
from sandfork.dialects.base import Bounds, RawRequest
from sandfork.dialects.native import DIALECT as NATIVE
from sandfork.dialects.native import parse_batch, parse_exec
from sandfork.errors import InvalidRequest
from sandfork.model import Limits


def refusal(body: bytes, parse: Any = parse_exec) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        parse(RawRequest(body), Bounds())
    return caught.value


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        (b"", "", "the body is empty"),
        (b" \n", "", "the body is empty"),
        (b"{", "", "not valid JSON"),
        (b'{"code": "x"} y', "", "not valid JSON"),
        (b"\xff", "", "not valid UTF-8"),
        (b'{"code": "\xff"}', "", "not valid UTF-8"),
        (b"[]", "", "expected object, got array"),
        (b'"code"', "", "expected object, got str"),
        (b"null", "", "expected object, got null"),
        (b'{"code": 7}', "code", "expected str, got int"),
        (b'{"code": null}', "code", "expected str, got null"),
        (b'{"code": "x", "language": ["python"]}', "language", "expected str, got array"),
        (b'{"code": "x", "timeout_seconds": "30"}', "timeout_seconds", "expected int, got str"),
        (b'{"code": "x", "timeout_seconds": 1.5}', "timeout_seconds", "expected int, got float"),
        (b'{"code": "x", "timeout_seconds": true}', "timeout_seconds", "expected int, got bool"),
        (b'{"code": "x", "timeout_seconds": 0}', "timeout_seconds", "expected int >= 1"),
        (b'{"code": "x", "timeout_seconds": -5}', "timeout_seconds", "expected int >= 1"),
        (b'{"code": "x", "timeout_seconds": NaN}', "", "NaN is no JSON number"),
        (b'{"code": "x", "limits": {"wall_s": 1e999}}', "limits.wall_s", "number out of range"),
        (b'{"code": "x", "limits": {"pids": 1.5}}', "limits.pids", "got float"),
        (b'{"code": "x", "env": {"A": 1}}', "env[...]", "expected str, got int"),
        (b'{"code": "\\ud800"}', "code", "half a surrogate pair"),
        (b'{"code": "x", "env": {"A": "\\udfff"}}', "env.A", "half a surrogate pair"),
        (b'{"code": "x", "env": {"\\ud800": "A"}}', "env", "half a surrogate pair"),
        (b'{"code": "x", "args": ["a", "\\ud83d"]}', "args[1]", "half a surrogate pair"),
        (b'{"code": "x", "surprise": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "", "nested too deeply"),
        (b'{"code": "x", "surprise": ' + b'{"a":' * 100_000, "", "nested too deeply"),
    ],
)
def test_a_malformed_body_is_refused_by_the_field_at_fault(body: bytes, field: str, words: str) -> None:
    error = refusal(body)
    assert (error.field, words in error.reason) == (field, True), error.reason


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (b"{}", "executions"),
        (b'{"executions": {}}', "executions"),
        (b'{"executions": [{"code": "x"}, {"code": 1}]}', "executions[1].code"),
        (b'{"executions": [{"code": "x"}, {}]}', "executions[1].code"),
        (b'{"executions": ["print(1)"]}', "executions[0]"),
        (b'{"executions": [{"code": "x", "stdin": {"base64": "?"}}]}', "executions[0].stdin.base64"),
    ],
)
def test_a_malformed_item_is_refused_by_its_number(body: bytes, field: str) -> None:
    assert refusal(body, parse_batch).field == field


@pytest.mark.parametrize("number", ["30.0", "3e1", "300.0e-1"])
def test_a_whole_number_may_be_written_as_a_float(number: str) -> None:
    ask = parse_exec(RawRequest(b'{"code": "x", "timeout_seconds": %s}' % number.encode()), Bounds())
    assert ask.requests[0].limits.wall_s == 30.0


@pytest.mark.parametrize(
    ("rest", "field"),
    [
        (b'"limits": {"pids": 1.5}', "limits.pids"),
        (b'"limits": {"wall_s": 1e999}', "timeout_seconds"),
        (b'"stdin": "\\ud800"', "stdin"),
        (b'"stdin": 7', "stdin"),
        (b'"limits": {"pids": 1e300}', "limits.pids"),
        (b'"surprise": ' + b"[" * 100_000, "timeout_seconds"),
        (b'"stdin": "' + b"x" * fields.EXPLAINED_BYTES + b'"', "timeout_seconds"),
    ],
)
def test_a_body_with_such_a_number_is_checked_as_any_other(rest: bytes, field: str) -> None:
    assert refusal(b'{"code": "x", "timeout_seconds": 30.0, ' + rest + b"}").field == field


def test_a_large_malformed_body_is_refused_without_a_search() -> None:
    error = refusal(b'{"code": "' + b"x" * fields.EXPLAINED_BYTES + b"\\ud800" + b'"}')
    assert (error.field, error.reason) == ("", "the body is not valid JSON")


def test_surrogate_pairs_are_text() -> None:
    ask = parse_exec(RawRequest(b'{"code": "\\ud83d\\ude00"}'), Bounds())
    assert ask.requests[0].program.code == "\U0001f600"  # type: ignore[union-attr]


def test_every_refusal_can_be_sent() -> None:
    for body in (b'{"code": "\\ud800"}', b'{"code": "x", "env": {"\\ud800": "A"}}', b'{"\\ud800": 1}'):
        reply = NATIVE.render_error(refusal(body), "id")
        assert msgspec.json.decode(reply.body)


def test_code_is_measured_in_bytes() -> None:
    assert fields.check_code("é" * 5, "code", 10)
    with pytest.raises(InvalidRequest, match="code: is longer than 10 bytes"):
        fields.check_code("é" * 6, "code", 10)


def test_a_path_that_is_no_utf8_is_sent_with_replacements() -> None:
    assert fields.path_text("plain.txt") == "plain.txt"
    assert fields.path_text("é.txt") == "é.txt"
    assert fields.path_text(b"\xff.txt".decode("utf-8", "surrogateescape")) == "�.txt"


def test_base64_is_read_with_line_breaks_and_refused_in_other_alphabets() -> None:
    assert fields.from_base64("aGVs\r\nbG8=", "f") == b"hello"
    for wrong in ("aGVsbG8", "a", "_-_-", "é", "aGVs bG8!", "aGVs\x1dbG8=", "aGVs\u00a0bG8="):
        with pytest.raises(InvalidRequest, match=r"^f: "):
            fields.from_base64(wrong, "f")


@pytest.mark.parametrize(
    "text",
    ["", " \n", "aGVs\r\nbG8=", "a G V\ts\nbG8 =\n", "YQ= =", "aGVsbG8", "=", "YQ=", "aGVs\x1dbG8=", "aGVs\u00a0bG8="],
)
def test_documents_say_what_base64_is_taken(text: str) -> None:
    if re.search(fields.BASE64_PATTERN, text):
        fields.from_base64(text, "f")
    else:
        with pytest.raises(InvalidRequest):
            fields.from_base64(text, "f")


def test_a_line_of_ours_stands_alone_at_the_end() -> None:
    line = fields.timed_out_line(Limits(wall_s=0.5))
    assert line == "Execution timed out after 0.5s"
    assert fields.with_last_line(b"", line) == line
    assert fields.with_last_line(b"a", line) == f"a\n{line}"
    assert fields.with_last_line(b"a\n", line) == f"a\n{line}"


def test_a_callers_own_name_is_cut_in_messages() -> None:
    assert len(fields.shown("x" * 5000)) < 100
