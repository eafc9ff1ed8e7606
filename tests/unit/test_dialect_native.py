"""Our own API: every field to its place in the request, every part of a result to its place in the reply."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from sandfork.dialects import load_dialects
from sandfork.dialects.actions import Begin, Input, Nothing, Signal
from sandfork.dialects.base import Bounds, Dialect, RawRequest, ServiceHealth
from sandfork.dialects.native import (
    DIALECT,
    parse_batch,
    parse_exec,
    render_batch,
    render_error,
    render_exec,
    render_health,
)
from sandfork.dialects.native_events import receive
from sandfork.errors import (
    DeadlinePassed,
    DiskFull,
    FileNotInSandbox,
    Forbidden,
    ForkFailed,
    InvalidRequest,
    LanguageGone,
    NotSupported,
    Overloaded,
    PayloadTooLarge,
    RateLimited,
    SandforkError,
    SessionConflict,
    SessionNotFound,
    TierUnavailable,
    Unauthenticated,
    UnknownLanguage,
)
from sandfork.model import (
    Command,
    Display,
    ExecRequest,
    InputFile,
    LimitsOverride,
    Outcome,
    OutputFile,
    SessionUse,
    Snippet,
    Stream,
    TemplateHealth,
    Timings,
)
from tests.support.stub_engine import ended

BOUNDS = Bounds(max_wall_s=60.0, max_code_bytes=100, max_batch=3)


def asked(body: dict[str, Any]) -> ExecRequest:
    return parse_exec(RawRequest(json.dumps(body).encode()), BOUNDS).requests[0]


def replied(result: Any, body: dict[str, Any] | None = None) -> dict[str, Any]:
    ask = parse_exec(RawRequest(json.dumps(body or {"code": ""}).encode()), BOUNDS)
    return json.loads(render_exec(ask, (result,), "").body)


def test_every_field_finds_its_place() -> None:
    body = {
        "code": "x",
        "language": "node",
        "args": ["-v", ""],
        "stdin": "in",
        "env": {"A": "1", "B": ""},
        "files": {"a.txt": "text é", "b.bin": {"base64": "AAEC/w=="}},
        "collect": ["out.txt", "*.csv"],
        "limits": {
            "wall_s": 2.5,
            "cpu_s": 1,
            "memory_bytes": 8 << 20,
            "pids": 2,
            "open_files": 9,
            "output_bytes": 4,
            "disk_bytes": 1 << 20,
            "cpus": 0.5,
        },
        "network": "filtered",
        "packages": ["numpy"],
        "isolation": "gvisor",
        "template": "node",
        "session": "s1",
        "fresh": True,
        "secrets": ["hush"],
        "rich": True,
    }
    assert asked(body) == ExecRequest(
        program=Snippet("node", "x"),
        files=(InputFile("a.txt", "text é".encode()), InputFile("b.bin", b"\0\1\2\xff")),
        stdin=b"in",
        args=("-v", ""),
        env=(("A", "1"), ("B", "")),
        limits=LimitsOverride(2.5, 1.0, 8 << 20, 2, 9, 4, 1 << 20, 0.5),
        network="filtered",
        isolation="gvisor",
        template="node",
        session=SessionUse("native", "s1", fresh=True),
        collect=("out.txt", "*.csv"),
        packages=("numpy",),
        secrets=("hush",),
        rich=True,
    )


def test_what_is_not_named_stays_the_servers() -> None:
    assert asked({"code": "x"}) == ExecRequest(program=Snippet(None, "x"), limits=LimitsOverride(wall_s=30.0))


def test_a_command_takes_the_place_of_code() -> None:
    assert asked({"argv": ["ls", "-la"]}).program == Command(("ls", "-la"))


def test_standard_input_may_be_bytes() -> None:
    assert asked({"code": "", "stdin": {"base64": "/w=="}}).stdin == b"\xff"


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "code"),
        ({"code": "x", "argv": ["ls"]}, "argv"),
        ({"argv": []}, "argv"),
        ({"argv": "ls -la"}, "argv"),
        ({"code": "x" * 101}, "code"),
        ({"code": "", "stdin": 7}, "stdin"),
        ({"code": "", "stdin": {"base64": "!"}}, "stdin.base64"),
        ({"code": "", "files": {"a": {"base64": "!"}}}, "files.a.base64"),
        ({"code": "", "files": {"a": {}}}, "files[...].base64"),
        ({"code": "", "files": []}, "files"),
        ({"code": "", "limits": {"memory_bytes": 0}}, "limits.memory_bytes"),
        ({"code": "", "limits": {"memory_bytes": "1g"}}, "limits.memory_bytes"),
        ({"code": "", "limits": {"memory_bytes": 1 << 80}}, "limits.memory_bytes"),
        ({"code": "", "limits": {"wall_s": 0}}, "limits.wall_s"),
        ({"code": "", "limits": {"wall_s": -1}}, "limits.wall_s"),
        ({"code": "", "limits": 5}, "limits"),
        ({"code": "", "network": "open"}, "network"),
        ({"code": "", "isolation": "docker"}, "isolation"),
        ({"code": "", "files_as": "hex"}, "files_as"),
        ({"code": "", "collect": "out.txt"}, "collect"),
        ({"code": "", "collect": ["x"] * 101}, "collect"),
        ({"code": "", "session": ""}, "session"),
        ({"code": "", "stream": "yes"}, "stream"),
        ({"code": "", "packages": "numpy"}, "packages"),
    ],
)
def test_a_wrong_field_is_refused_by_name(body: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        asked(body)
    assert caught.value.field == field


def test_a_stream_is_for_one_run() -> None:
    assert parse_exec(RawRequest(b'{"code": "", "stream": true}'), BOUNDS).writer is not None
    assert parse_batch(RawRequest(b'{"executions": [{"code": "", "stream": true}]}'), BOUNDS).writer is None


def test_what_is_of_sessions_and_rich_values_is_told_where_it_was_asked_for() -> None:
    plain, shown = replied(ended()), (Display("result", {"text/plain": "4"}),)
    assert "displays" not in plain
    assert "state_lost" not in plain
    rich = replied(ended(displays=shown, state_lost=True), {"code": "", "rich": True, "session": "s"})
    assert rich["displays"] == [{"kind": "result", "data": {"text/plain": "4"}}]
    assert rich["state_lost"] is True


def test_a_program_that_was_compiled_tells_how_long_that_took_and_when_it_failed() -> None:
    plain = replied(ended())
    assert "failed_step" not in plain
    assert "compile_time_ms" not in plain
    failed = replied(ended(failed_step="compile", exit_code=1, timings=Timings(0.0, 0.001, 0.25, 0.3, 0.25)))
    assert (failed["failed_step"], failed["exit_code"], failed["compile_time_ms"]) == ("compile", 1, 250.0)


def told(writer: Any, *, outcome: Outcome = Outcome.EXITED, **chunks: bytes) -> list[dict[str, Any]]:
    """Return the events of a run that wrote chunks, named after the streams, and then ended."""
    texts = [writer.started("id-1")]
    texts += [writer.output(Stream[name.upper().rstrip("_")], chunk) for name, chunk in chunks.items()]
    texts.append(writer.finished(ended(stdout=b"", outcome=outcome)))
    blocks = [block for text in texts for block in text.split("\n\n") if block]
    assert all(re.fullmatch(r"event: (\w+)\ndata: .*", block) for block in blocks)
    return [json.loads(block.partition("\ndata: ")[2]) for block in blocks]


def a_writer() -> Any:
    return parse_exec(RawRequest(b'{"code": "", "stream": true}'), BOUNDS).writer


def test_a_character_in_two_pieces_is_told_once_and_what_is_none_at_the_end() -> None:
    events = told(a_writer(), stdout=b"a\xe2", stderr=b"\xc3", stdout_=b"\x82\xac\r\nevent: x\n\n", stderr_=b"")
    assert [(e["type"], e.get("text")) for e in events] == [
        ("started", None),
        ("stdout", "a"),
        ("stdout", "€\r\nevent: x\n\n"),
        ("stderr", "�"),
        ("result", None),
    ]


def test_a_result_in_a_stream_tells_all_of_a_plain_reply_but_the_output() -> None:
    result = told(a_writer())[-1]
    assert {**replied(ended()), "type": "result"}.keys() - result.keys() == {"stdout", "stderr"}
    assert result.keys() - replied(ended()).keys() == {"type"}


@pytest.mark.parametrize(("wrote", "line"), [(b"x", "\nExecution"), (b"x\n", "Execution"), (b"", "Execution")])
def test_the_line_of_a_timeout_is_the_last_of_standard_error(wrote: bytes, line: str) -> None:
    events = told(a_writer(), stderr=wrote, outcome=Outcome.TIMED_OUT)
    plain = replied(ended(stderr=wrote, outcome=Outcome.TIMED_OUT))
    assert "".join(e["text"] for e in events if e["type"] == "stderr") == plain["stderr"]
    assert events[-2]["text"] == f"{line} timed out after 30s"
    assert events[-1]["exit_code"] == -1


@pytest.mark.parametrize(
    ("message", "wanted"),
    [
        (b"\0\xff", Input(b"\0\xff")),
        (b"", Nothing()),
        ('{"type": "stdin", "data": "é"}', Input("é".encode())),
        ('{"type": "stdin", "data": {"base64": "/w=="}}', Input(b"\xff")),
        ('{"type": "stdin", "data": ""}', Nothing()),
        ('{"type": "end_stdin"}', Input(b"")),
        ('{"type": "signal", "signal": "SIGTERM"}', Signal(15)),
        ('{"type": "signal", "signal": 64}', Signal(64)),
    ],
)
def test_messages_are_read_as_what_they_are(message: str | bytes, wanted: Any) -> None:
    assert receive(message, BOUNDS) == wanted


@pytest.mark.parametrize(
    "message",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"type": "stop"}',
        '{"type": "stdin"}',
        '{"type": "stdin", "data": {"base64": "!"}}',
        '{"type": "signal", "signal": 0}',
        '{"type": "signal", "signal": 65}',
        '{"type": "signal", "signal": "SIGSEGV"}',
        '{"type": "start"}',
        '{"type": "start", "code": 7}',
        "\ud800",
    ],
)
def test_a_message_that_is_none_is_refused(message: str) -> None:
    with pytest.raises(InvalidRequest):
        receive(message, BOUNDS)


def test_a_start_is_a_run_whose_standard_input_stays_open() -> None:
    begin = receive('{"type": "start", "code": "x", "stdin": "first"}', BOUNDS)
    assert isinstance(begin, Begin)
    (request,) = begin.ask.requests
    assert (request.program, request.stdin, request.keep_stdin) == (Snippet(None, "x"), b"first", True)


@pytest.mark.parametrize(
    ("body", "wall_s"),
    [
        ({"timeout_seconds": 5}, 5.0),
        ({"timeout_seconds": 600}, 60.0),
        ({"limits": {"wall_s": 1e300}}, 60.0),
        ({"limits": {"wall_s": 0.25}, "timeout_seconds": 5}, 0.25),
        ({"limits": {"pids": 4}, "timeout_seconds": 5}, 5.0),
        ({"limits": {}, "timeout_seconds": 600}, 60.0),
    ],
)
def test_the_wall_time_is_lowered_to_the_maximum_however_it_is_named(body: dict[str, Any], wall_s: float) -> None:
    assert asked({"code": "", **body}).limits.wall_s == wall_s


def test_a_reply_tells_all_of_a_result() -> None:
    reply = replied(ended(truncated=True, files_skipped=("pipe",), exit_code=3))
    assert reply["outcome"] == "exited"
    assert (reply["exit_code"], reply["signal"], reply["truncated"]) == (3, None, True)
    assert reply["usage"] == {
        "cpu_user_s": 0.002,
        "cpu_system_s": 0.001,
        "wall_s": 0.0072,
        "memory_peak_bytes": 9 << 20,
        "processes": 1,
        "io_read_bytes": 0,
        "io_write_bytes": 0,
    }
    assert reply["limits"] == {
        "wall_s": 30.0,
        "cpu_s": 30.0,
        "memory_bytes": 512 << 20,
        "pids": 64,
        "open_files": 256,
        "output_bytes": 1 << 20,
        "disk_bytes": 64 << 20,
        "cpus": None,
    }
    assert (reply["isolation"], reply["files"], reply["files_skipped"]) == ("process", {}, ["pipe"])
    assert reply["queue_time_ms"] == 0.05


@pytest.mark.parametrize("outcome", list(Outcome))
def test_every_outcome_is_told_by_its_word_and_has_a_number(outcome: Outcome) -> None:
    reply = replied(ended(outcome=outcome, exit_code=None, signal=9))
    assert reply["outcome"] == outcome.value
    assert reply["exit_code"] == (-1 if outcome is Outcome.TIMED_OUT else 137)
    assert reply["signal"] == 9


def test_files_come_back_as_base64_or_as_text_where_they_are_text() -> None:
    result = ended(files=(OutputFile("a.txt", "é\n".encode()), OutputFile("b.bin", b"\xff")))
    assert replied(result)["files"] == {"a.txt": {"base64": "w6kK"}, "b.bin": {"base64": "/w=="}}
    as_text = replied(result, {"code": "", "files_as": "text"})["files"]
    assert as_text == {"a.txt": "é\n", "b.bin": {"base64": "/w=="}}


def test_files_of_a_reply_can_be_sent_as_files_of_a_request() -> None:
    files = (OutputFile("a.txt", b"text"), OutputFile("b.bin", bytes(range(256))))
    for files_as in ("text", "base64"):
        reply = replied(ended(files=files), {"code": "", "files_as": files_as})
        back = asked({"code": "", "files": reply["files"]}).files
        assert [(file.path, file.content) for file in back] == [(file.path, file.content) for file in files]


def test_a_file_name_that_is_no_utf8_does_not_spoil_the_reply() -> None:
    name = b"\xff.txt".decode("utf-8", "surrogateescape")
    reply = replied(ended(files=(OutputFile(name, b"x"),), files_skipped=(name,)))
    assert list(reply["files"]) == ["�.txt"]
    assert reply["files_skipped"] == ["�.txt"]


def test_each_item_of_a_batch_is_answered_in_its_own_way() -> None:
    body = {"executions": [{"code": "a", "files_as": "text"}, {"code": "b"}, {"argv": ["c"]}]}
    ask = parse_batch(RawRequest(json.dumps(body).encode()), BOUNDS)
    file = OutputFile("f", b"x")
    answers = (ended(files=(file,)), ended(files=(file,)), ForkFailed("a secret path", step="clone3"))
    first, second, third = json.loads(render_batch(ask, answers, "req-1").body)["results"]
    assert (first["files"], second["files"]) == ({"f": "x"}, {"f": {"base64": "eA=="}})
    assert (third["code"], third["exit_code"], third["id"]) == ("fork_failed", -1, "req-1")
    assert "secret" not in third["error"]


def test_a_batch_above_the_maximum_is_refused() -> None:
    body = {"executions": [{"code": ""}] * 4}
    with pytest.raises(InvalidRequest, match="executions: holds 4 items, more than 3"):
        parse_batch(RawRequest(json.dumps(body).encode()), BOUNDS)


def test_health_is_a_superset_with_a_word_of_choice() -> None:
    python, node = TemplateHealth("python", True, 13 << 20, 8, 2), TemplateHealth("node", False, 0, 0, 0, "no node")
    health = ServiceHealth((python, node), "1.2.3", "process", ("disk_bytes",), "healthy", 1704110400.9)
    assert json.loads(render_health(health).body) == {
        "status": "healthy",
        "templates": {
            "python": {"ready": True, "memory_mb": 13, "parked": 8, "generation": 2, "reason": ""},
            "node": {"ready": False, "memory_mb": 0, "parked": 0, "generation": 0, "reason": "no node"},
        },
        "version": "1.2.3",
        "timestamp": "2024-01-01T12:00:00Z",
        "isolation": "process",
        "unenforced_limits": ["disk_bytes"],
    }


STATUSES = [
    (InvalidRequest("code", "is required"), 400),
    (UnknownLanguage("cobol"), 400),
    (LanguageGone("cobol"), 400),
    (Unauthenticated(missing=True), 401),
    (Forbidden("memory"), 403),
    (SessionNotFound("no such session"), 404),
    (SessionConflict("it is there already"), 409),
    (FileNotInSandbox("no such file"), 404),
    (PayloadTooLarge(10), 413),
    (DiskFull("no room"), 413),
    (RateLimited("too fast", retry_after_s=0.2), 429),
    (SandforkError("internal error"), 500),
    (ForkFailed("no"), 500),
    (ForkFailed("not now", retry_after_s=1), 503),
    (NotSupported("sessions"), 501),
    (Overloaded("full"), 503),
    (DeadlinePassed("late", retry_after_s=3.2), 503),
    (TierUnavailable("no kvm"), 503),
]
#: Where an error's sentence is, and the statuses that differ: those of the frameworks whose clients read them.
SENTENCES = {"instavm": "detail"}
OWN_STATUSES = {("instavm", InvalidRequest): 422, ("instavm", UnknownLanguage): 422}


@pytest.mark.parametrize("dialect", load_dialects(), ids=lambda dialect: dialect.name)
@pytest.mark.parametrize(("error", "status"), STATUSES, ids=lambda value: type(value).__name__)
def test_every_error_has_a_status_and_a_sentence(dialect: Dialect, error: SandforkError, status: int) -> None:
    reply = dialect.render_error(error, "req-1")
    assert reply.status == OWN_STATUSES.get((dialect.name, type(error)), status)
    assert json.loads(reply.body)[SENTENCES.get(dialect.name, "error")]
    later = isinstance(error, Overloaded | DeadlinePassed) or error.retry_after_s is not None
    assert (b"retry-after" in dict(reply.headers)) == (status == 429 or later)


def test_an_error_tells_its_word_its_field_and_its_id() -> None:
    body = json.loads(render_error(InvalidRequest("limits.pids", "expected int >= 1"), "req-1").body)
    assert body == {
        "error": "limits.pids: expected int >= 1",
        "code": "invalid_request",
        "request_id": "req-1",
        "field": "limits.pids",
    }
    assert "field" not in json.loads(render_error(InvalidRequest("", "the body is empty"), "").body)


def test_waiting_times_are_told_in_whole_seconds_rounded_up() -> None:
    waits = {0.01: b"1", 1.0: b"1", 1.01: b"2", 59.9: b"60"}
    told = {s: dict(render_error(RateLimited("x", retry_after_s=s), "").headers)[b"retry-after"] for s in waits}
    assert told == waits


def test_our_own_dialect_is_at_root() -> None:
    assert DIALECT.prefix == ""
