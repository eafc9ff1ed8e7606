"""isol8's API: every field to its place in the request, every part of a result to its place in the reply."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from sandfork.dialects.actions import Begin, DeleteSession, Input, ListSessions, ReadFile, Signal, WriteFile
from sandfork.dialects.base import Bounds, RawRequest, ServiceHealth
from sandfork.dialects.isol8 import (
    parse_delete,
    parse_download,
    parse_exec,
    parse_list,
    parse_stream,
    parse_upload,
    receive,
    refuse,
    render_done,
    render_error,
    render_exec,
    render_file,
    render_health,
    render_sessions,
)
from sandfork.dialects.isol8_events import Events
from sandfork.errors import (
    CallerError,
    FileNotInSandbox,
    Forbidden,
    GuestLost,
    InvalidRequest,
    NotSupported,
    Overloaded,
    PayloadTooLarge,
    RateLimited,
    SandforkError,
    SessionNotFound,
    Unauthenticated,
    UnknownLanguage,
    WrongLanguage,
)
from sandfork.model import (
    Command,
    Display,
    ExecRequest,
    ExecResult,
    InputFile,
    Limits,
    LimitsOverride,
    Outcome,
    OutputFile,
    SessionSpec,
    SessionState,
    SessionUse,
    Snippet,
    Stream,
    TemplateHealth,
    Timings,
    Usage,
)
from tests.support.stub_engine import ended

CEILINGS = Limits(60.0, 60.0, 1 << 30, 128, 1024, 4 << 20, 256 << 20, 2.0)
BOUNDS = Bounds(max_wall_s=60.0, max_code_bytes=100, max_batch=3, ceilings=CEILINGS)
CODE = {"code": "print('hello')", "runtime": "python"}
MIB = 1 << 20


def raw(**body: Any) -> RawRequest:
    return RawRequest(json.dumps(body).encode())


def asked(request: dict[str, Any] | None = None, **body: Any) -> ExecRequest:
    return parse_exec(raw(request={**CODE, **(request or {})}, **body), BOUNDS).requests[0]


def refusal(request: dict[str, Any], **body: Any) -> CallerError:
    with pytest.raises(CallerError) as refused:
        parse_exec(raw(request=request, **body), BOUNDS)
    return refused.value


def replied(result: ExecResult, request: dict[str, Any] | None = None, **body: Any) -> dict[str, Any]:
    ask = parse_exec(raw(request={**CODE, **(request or {})}, **body), BOUNDS)
    reply: dict[str, Any] = json.loads(render_exec(ask, (result,), "").body)
    return reply


def test_every_printed_field_has_its_place() -> None:
    request = {
        **CODE,
        "timeoutMs": 5000,
        "env": {"MY_VAR": "value"},
        "stdin": "input data",
        "files": {"/sandbox/data.csv": "a,b\n1,2"},
        "outputPaths": ["/sandbox/out.txt"],
        "installPackages": ["numpy"],
    }
    options = {
        "network": "none",
        "memoryLimit": "512m",
        "cpuLimit": 1.0,
        "timeoutMs": 30000,
        "sandboxSize": "64m",
        "tmpSize": "64m",
    }
    assert asked(request, options=options) == ExecRequest(
        program=Snippet("python", "print('hello')"),
        files=(InputFile("/sandbox/data.csv", b"a,b\n1,2"),),
        stdin=b"input data",
        env=(("MY_VAR", "value"),),
        limits=LimitsOverride(wall_s=5.0, memory_bytes=512 * MIB, disk_bytes=128 * MIB, cpus=1.0),
        collect=("/sandbox/out.txt",),
        packages=("numpy",),
    )


def test_what_is_not_named_or_null_is_the_servers_to_say_but_for_the_timeout() -> None:
    nothing = dict.fromkeys(["timeoutMs", "env", "stdin", "files", "outputPaths", "workdir", "installPackages"])
    names = ["memoryLimit", "cpuLimit", "pidsLimit", "sandboxSize", "secrets", "network", "readonlyRootFs", "image"]
    for request in (asked(), asked(nothing, options=dict.fromkeys(names)), asked(options=None, sessionId=None)):
        assert request == ExecRequest(Snippet("python", "print('hello')"), limits=LimitsOverride(wall_s=30.0))


@pytest.mark.parametrize(
    ("of_request", "of_options", "wall_s"),
    [(5000, 9000, 5.0), (None, 9000, 9.0), (None, None, 30.0), (1, None, 0.001), (600_000, 1, 60.0), (None, 1e9, 60.0)],
)
def test_the_timeout_of_the_request_beats_that_of_the_options_and_the_servers_maximum_both(
    of_request: int | None, of_options: int | None, wall_s: float
) -> None:
    request = asked({"timeoutMs": of_request}, options={"timeoutMs": of_options})
    assert request.limits.wall_s == wall_s


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("512m", 512 * MIB),
        ("512M", 512 * MIB),
        ("512mb", 512 * MIB),
        ("512 MB", 512 * MIB),
        ("1g", 1 << 30),
        ("0.5g", 1 << 29),
        ("8192k", 8 * MIB),
        ("8388608", 8 * MIB),
        ("8388608b", 8 * MIB),
    ],
)
def test_a_size_is_a_number_and_a_unit(text: str, size: int) -> None:
    assert asked(options={"memoryLimit": text}).limits.memory_bytes == size


@pytest.mark.parametrize("text", ["", "m", "512x", "-1m", "1e3m", "1,5g", "512mm", "0x10m", "512m\n", "५m", ".5g"])
def test_what_is_no_size_is_refused_by_its_name(text: str) -> None:
    refused = refusal(CODE, options={"memoryLimit": text})
    assert isinstance(refused, InvalidRequest)
    assert refused.field == "options.memoryLimit"


@pytest.mark.parametrize(("name", "text"), [("memoryLimit", "4095k"), ("sandboxSize", "63k"), ("tmpSize", "0")])
def test_a_size_in_which_nothing_fits_is_refused(name: str, text: str) -> None:
    refused = refusal(CODE, options={name: text})
    assert isinstance(refused, InvalidRequest)
    assert refused.field == f"options.{name}"


def test_the_two_file_systems_are_one_as_large_as_those_named() -> None:
    assert asked(options={"sandboxSize": "64m"}).limits.disk_bytes == 64 * MIB
    assert asked(options={"tmpSize": "1m"}).limits.disk_bytes == MIB
    assert asked(options={"sandboxSize": "64m", "tmpSize": "1m"}).limits.disk_bytes == 65 * MIB


def test_cores_are_processors_at_a_time_and_no_processor_time() -> None:
    for cores in (0.01, 0.5, 2):
        assert asked(options={"cpuLimit": cores}).limits == LimitsOverride(wall_s=30.0, cpus=cores)
    assert asked(options={}).limits.cpus is None


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"memoryLimit": "1025m"}, "options.memoryLimit: 1074790400 is above the ceiling of 1073741824"),
        ({"memoryLimit": "1t"}, "options.memoryLimit"),
        ({"cpuLimit": 2.5}, "options.cpuLimit: 2.5 is above the ceiling of 2.0"),
        ({"pidsLimit": 129}, "options.pidsLimit: 129 is above the ceiling of 128"),
        ({"maxOutputSize": 4 * MIB + 1}, "options.maxOutputSize"),
        ({"sandboxSize": "200m", "tmpSize": "57m"}, "options.sandboxSize and tmpSize"),
        ({"readonlyRootFs": False}, "options.readonlyRootFs"),
        ({"image": "alpine"}, "options.image"),
        ({"security": {"seccomp": "unconfined"}}, "options.security.seccomp"),
        ({"security": {"seccomp": "custom"}}, "options.security.seccomp"),
    ],
)
def test_what_is_above_a_ceiling_is_refused_by_its_name(options: dict[str, Any], named: str) -> None:
    refused = refusal(CODE, options=options)
    assert isinstance(refused, Forbidden)
    assert refused.message.startswith(named)
    assert "ceiling" in refused.message


def test_options_that_are_what_we_have_are_taken() -> None:
    options = {"readonlyRootFs": True, "security": {"seccomp": "strict"}, "pidsLimit": 128, "maxOutputSize": 4 * MIB}
    assert asked(options=options).limits == LimitsOverride(wall_s=30.0, pids=128, output_bytes=4 * MIB)
    # What other clients send of their own configuration, none of it ours to honour.
    ignored = {"mode": "persistent", "poolSize": {"clean": 1}, "audit": {}, "debug": True, "networkFilter": {}}
    assert asked(options=ignored) == asked()


@pytest.mark.parametrize("network", ["none", "host", "filtered"])
def test_a_network_is_the_engines_to_refuse(network: str) -> None:
    assert asked(options={"network": network}).network == network


@pytest.mark.parametrize("name", ["codeUrl", "setupScript"])
def test_what_this_server_does_not_have_is_refused_and_not_ignored(name: str) -> None:
    refused = refusal({**CODE, name: "x"})
    assert isinstance(refused, NotSupported)
    assert refused.message.startswith(f"request.{name}: ")


def test_a_command_is_a_line_for_the_shell_or_its_words() -> None:
    line = parse_exec(raw(request={"cmd": "ls | wc -l"}), BOUNDS)
    assert line.requests[0].program == Command(("/bin/bash", "-c", "ls | wc -l"))
    assert line.echo.runtime == "bash"
    words = parse_exec(raw(request={"cmd": ["ls", "-l"], "runtime": "node"}), BOUNDS)
    assert words.requests[0].program == Command(("ls", "-l"))
    assert words.echo.runtime == "node"


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        ({}, "request.code"),
        ({"runtime": "python"}, "request.code"),
        ({"runtime": "python", "cmd": "  "}, "request.code"),
        ({"code": "1"}, "request.runtime"),
        ({"code": "1", "runtime": ""}, "request.runtime"),
        ({"code": "1", "runtime": None}, "request.runtime"),
        ({"code": None, "runtime": "python"}, "request.code"),
        ({**CODE, "cmd": "ls"}, "request.cmd"),
        ({"cmd": []}, "request.cmd"),
        ({**CODE, "code": "x" * 101}, "request.code"),
        ({**CODE, "timeoutMs": 0}, "request.timeoutMs"),
        ({**CODE, "timeoutMs": "5000"}, "request.timeoutMs"),
        ({**CODE, "env": {"A": 1}}, "request.env[...]"),
        ({**CODE, "files": ["a"]}, "request.files"),
        ({**CODE, "outputPaths": "a"}, "request.outputPaths"),
        ({**CODE, "workdir": "/etc"}, "request.workdir"),
        ({**CODE, "workdir": "../etc"}, "request.workdir"),
        ({**CODE, "workdir": "/sandboxes"}, "request.workdir"),
        ({**CODE, "workdir": "/x/sandbox/a"}, "request.workdir"),
    ],
)
def test_a_request_that_is_wrong_is_refused_by_the_name_of_its_field(request_: dict[str, Any], field: str) -> None:
    refused = refusal(request_)
    assert isinstance(refused, InvalidRequest)
    assert refused.field == field


@pytest.mark.parametrize("value", [None, 7, "x", []])
def test_a_request_of_a_wrong_type_is_refused_by_its_name(value: Any) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_exec(raw(request=value), BOUNDS)
    assert refused.value.field == "request"


@pytest.mark.parametrize(
    ("path", "place"),
    [("", ""), ("/sandbox", ""), ("/sandbox/", ""), (".", ""), ("a", "a"), ("/sandbox//a/./b/", "a/b"), ("a/b", "a/b")],
)
def test_a_directory_to_run_in_is_told_from_the_work_directory_on(path: str, place: str) -> None:
    assert asked({"workdir": path}).work_dir == place


def test_secrets_are_variables_that_are_masked() -> None:
    request = asked({"env": {"A": "1", "TOKEN": "public"}}, options={"secrets": {"TOKEN": "s3cret", "KEY": "k"}})
    assert request.env == (("A", "1"), ("TOKEN", "s3cret"), ("KEY", "k"))
    assert request.secrets == ("s3cret", "k")


def test_a_session_keeps_what_is_for_all_of_it_and_each_run_the_rest() -> None:
    options = {"memoryLimit": "64m", "pidsLimit": 5, "sandboxSize": "1m", "cpuLimit": 1, "maxOutputSize": 10}
    request = asked({"timeoutMs": 2000}, options=options, sessionId="s 1")
    assert request.limits == LimitsOverride(wall_s=2.0, output_bytes=10)
    shared = LimitsOverride(memory_bytes=64 * MIB, pids=5, disk_bytes=MIB, cpus=1)
    spec = SessionSpec("python", one_language=True, limits=shared, idle_s=3600.0)
    assert request.session == SessionUse("isol8", "s 1", spec, fresh=True)
    assert asked(sessionId="").session is None


def test_a_stream_is_never_in_a_session() -> None:
    body = raw(request=CODE, sessionId="s", options={"memoryLimit": "64m"})
    ask = parse_stream(body, BOUNDS)
    assert ask.requests[0].session is None
    assert ask.requests[0].limits == LimitsOverride(wall_s=30.0, memory_bytes=64 * MIB)
    assert ask.writer is not None


def test_a_result_is_told_as_printed() -> None:
    result = ended(exec_id="550e8400", stdout=b"hello\n", started_s=1771070400.0)
    reply = replied(result)
    assert reply.pop("resourceUsage") == {
        "cpuPercent": 37.7,
        "memoryMB": 0.0,
        "peakMemoryMB": 9.0,
        "networkBytesIn": 0,
        "networkBytesOut": 0,
    }
    assert reply == {
        "stdout": "hello\n",
        "stderr": "",
        "exitCode": 0,
        "durationMs": 8,
        "truncated": False,
        "executionId": "550e8400",
        "runtime": "python",
        "timestamp": "2026-02-14T12:00:00.000Z",
        "containerId": "550e8400",
    }


def test_the_container_of_a_session_is_the_session_and_a_timestamp_has_milliseconds() -> None:
    reply = replied(ended(started_s=1771070400.1239), {"runtime": "py"}, sessionId="mine")
    assert (reply["containerId"], reply["runtime"]) == ("mine", "py")
    assert reply["timestamp"] == "2026-02-14T12:00:00.123Z"


def test_usage_that_was_not_measured_is_no_division_by_zero() -> None:
    result = ended(usage=Usage(cpu_user_s=1.0), timings=Timings())
    assert replied(result)["resourceUsage"]["cpuPercent"] == 0.0


def test_files_come_as_base64_by_the_paths_asked_for_and_missing_ones_not_at_all() -> None:
    asked_for = ["/sandbox/out.txt", "./a//b.bin", "/tmp/x", "missing", "/sandbox/a*b", "a*b"]
    request = asked({"outputPaths": asked_for})
    assert request.collect == ("/sandbox/out.txt", "./a//b.bin", "/tmp/x", "missing", "/sandbox/a[*]b", "a[*]b")
    found = (OutputFile("out.txt", b"1"), OutputFile("a/b.bin", b"\xff"), OutputFile("/tmp/x", b""))
    reply = replied(ended(files=(*found, OutputFile("a*b", b"2"))), {"outputPaths": asked_for})
    assert reply["files"] == {
        "/sandbox/out.txt": "MQ==",
        "./a//b.bin": "/w==",
        "/tmp/x": "",
        "/sandbox/a*b": "Mg==",
        "a*b": "Mg==",
    }
    assert replied(ended(), {"outputPaths": ["x"]})["files"] == {}
    assert "files" not in replied(ended(files=found))


@pytest.mark.parametrize(
    ("changes", "exit_code", "stderr"),
    [
        ({"exit_code": 3, "stderr": b"no\n"}, 3, "no\n"),
        ({"exit_code": None, "signal": 11, "outcome": Outcome.SIGNALLED}, 139, ""),
        ({"exit_code": None, "signal": 9, "outcome": Outcome.OUT_OF_MEMORY}, 137, ""),
        ({"exit_code": None, "signal": 9, "outcome": Outcome.TIMED_OUT}, 137, "EXECUTION TIMED OUT after 2s"),
        ({"exit_code": 0, "outcome": Outcome.TIMED_OUT, "stderr": b"x"}, 137, "x\nEXECUTION TIMED OUT after 2s"),
        (
            {"exit_code": None, "signal": 24, "outcome": Outcome.CPU_LIMIT, "stderr": b"x\n"},
            137,
            "x\nEXECUTION TIMED OUT after 1s of processor time",
        ),
    ],
)
def test_an_end_is_the_programs_own_and_only_a_timeout_adds_a_line(
    changes: dict[str, Any], exit_code: int, stderr: str
) -> None:
    reply = replied(ended(limits=Limits(wall_s=2.0, cpu_s=1.0), **changes))
    assert (reply["exitCode"], reply["stderr"]) == (exit_code, stderr)


def test_output_that_was_cut_says_so() -> None:
    reply = replied(ended(truncated=True, outcome=Outcome.OUTPUT_LIMIT, exit_code=None, signal=9, stdout=b"\xc3"))
    assert (reply["truncated"], reply["exitCode"], reply["stdout"]) == (True, 137, "\ufffd")


def told(text: str) -> list[tuple[str, str]]:
    """Return the events of a stream, each as one client takes them apart: line by line."""
    assert text == "" or text.endswith("\n\n")
    events = [json.loads(line.removeprefix("data: ")) for line in text.split("\n\n")[:-1]]
    assert all(set(event) == {"type", "data"} for event in events)
    return [(event["type"], event["data"]) for event in events]


def stream() -> Events:
    return Events("data: ", "\n\n")


def test_events_are_written_as_printed() -> None:
    events = stream()
    assert events.started("id") == ""
    assert events.output(Stream.STDOUT, b"Hello\n") == 'data: {"type":"stdout","data":"Hello\\n"}\n\n'
    assert events.output(Stream.STDERR, b"Warning: deprecated\n") == (
        'data: {"type":"stderr","data":"Warning: deprecated\\n"}\n\n'
    )
    assert events.display(Display("result", {"text/plain": "1"})) == ""
    assert events.finished(ended()) == 'data: {"type":"exit","data":"0"}\n\n'


def test_a_character_in_two_chunks_is_told_once_it_is_whole_and_half_a_one_at_the_end() -> None:
    events = stream()
    assert events.output(Stream.STDOUT, b"\xe2\x82") == ""
    assert told(events.output(Stream.STDERR, b"\xac")) == [("stderr", "\ufffd")]
    assert told(events.output(Stream.STDOUT, b"\xac\xe2")) == [("stdout", "€")]
    assert told(events.finished(ended(exit_code=3))) == [("stdout", "\ufffd"), ("exit", "3")]


@pytest.mark.parametrize(
    ("outcome", "line"),
    [
        (Outcome.TIMED_OUT, "EXECUTION TIMED OUT after 2s"),
        (Outcome.CPU_LIMIT, "EXECUTION TIMED OUT after 1s of processor time"),
        (Outcome.OUT_OF_MEMORY, "OUT OF MEMORY: more than 536870912 bytes"),
        (Outcome.OUTPUT_LIMIT, "OUTPUT TRUNCATED: more than 1048576 bytes"),
    ],
)
def test_a_program_that_was_stopped_is_an_error_and_then_an_exit(outcome: Outcome, line: str) -> None:
    result = ended(outcome=outcome, exit_code=None, signal=9, limits=Limits(wall_s=2.0, cpu_s=1.0))
    assert told(stream().finished(result)) == [("error", line), ("exit", "137")]


def test_a_failure_of_ours_is_an_error_and_no_exit() -> None:
    events = stream()
    events.output(Stream.STDOUT, b"\xc3")
    assert told(events.failed(GuestLost("gone"), "req")) == [
        ("stdout", "\ufffd"),
        ("error", "Execution failed: the sandbox could not be used (guest_lost)"),
    ]


def test_a_message_begins_a_run_in_its_session_and_messages_have_a_line_each() -> None:
    message = {"type": "execute", "request": CODE, "options": {"memoryLimit": "64m"}, "sessionId": "s"}
    begin = receive(json.dumps(message), BOUNDS)
    assert isinstance(begin, Begin)
    request = asked(options={"memoryLimit": "64m"}, sessionId="s")
    assert begin.ask.requests == (request,)
    writer = begin.ask.writer
    assert writer is not None
    assert writer.output(Stream.STDOUT, b"a\nb") == '{"type":"stdout","data":"a\\nb"}\n'
    lines = writer.finished(ended(outcome=Outcome.TIMED_OUT)).split("\n")
    assert [json.loads(line)["type"] for line in lines if line] == ["error", "exit"]


def test_stdin_stays_open_only_for_who_asks_for_it() -> None:
    for message, kept in (({"request": CODE}, False), ({"request": CODE, "keepStdin": True}, True)):
        begin = receive(json.dumps({"type": "execute", **message}).encode(), BOUNDS)
        assert isinstance(begin, Begin)
        assert begin.ask.requests[0].keep_stdin is kept


def test_messages_feed_and_signal() -> None:
    assert receive('{"type": "stdin", "data": "\\u00e4\\n"}', BOUNDS) == Input("ä\n".encode())
    assert receive('{"type": "stdin", "data": ""}', BOUNDS) == Input(b"")
    assert receive('{"type": "signal", "signal": "SIGINT"}', BOUNDS) == Signal(2)
    assert receive('{"type": "signal", "signal": "SIGTERM"}', BOUNDS) == Signal(15)


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("this is not json", "Invalid JSON: "),
        ("", "Invalid JSON: "),
        ("[]", "Invalid JSON: "),
        ('"\ud800"', "Invalid JSON: "),
        (b"\xff", "Invalid JSON: "),
        ('{"type": "unknown-type", "data": "x"}', "type: Unknown message type"),
        ('{"type": 7}', "type: Unknown message type"),
        ("{}", "type: Unknown message type"),
        ('{"type": "execute"}', "request: is required"),
        ('{"type": "stdin"}', "data: is required"),
        ('{"type": "signal", "signal": "SIGSTOP"}', "signal: must be one of SIGINT"),
    ],
)
def test_a_message_that_is_wrong_is_told_as_an_error(message: str | bytes, words: str) -> None:
    with pytest.raises(CallerError) as refused:
        receive(message, BOUNDS)
    event = json.loads(refuse(refused.value, "req"))
    assert event["type"] == "error"
    assert event["data"].startswith(words)


def test_files_go_to_and_come_from_a_session() -> None:
    upload = raw(sessionId="my-session", path="/sandbox/data.csv", content="")
    assert parse_upload(upload, BOUNDS) == WriteFile("my-session", "/sandbox/data.csv")
    download = RawRequest(query=b"sessionId=my-session&path=%2Fsandbox%2Fa%20%C3%A4.json")
    assert parse_download(download, BOUNDS) == ReadFile("my-session", "/sandbox/a ä.json")
    assert render_file(ReadFile("s", "p"), 13, "").around == (b'{"content":"', b'"}')
    assert render_done(DeleteSession("s"), None, "").body == b'{"ok":true}'


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "sessionId"),
        ({"sessionId": "", "path": "a", "content": ""}, "sessionId"),
        ({"sessionId": "s", "content": ""}, "path"),
        ({"sessionId": "s", "path": "a"}, "content"),
        ({"sessionId": "s", "path": "a", "content": 1}, "content"),
    ],
)
def test_an_upload_that_is_wrong_is_refused_by_the_name_of_its_field(body: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_upload(raw(**body), BOUNDS)
    assert refused.value.field == field


@pytest.mark.parametrize("query", [b"", b"sessionId=s", b"path=p", b"sessionId=&path=p", b"\xff=%"])
def test_a_download_must_say_whose_and_which(query: bytes) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_download(RawRequest(query=query), BOUNDS)
    reply = render_error(refused.value, "")
    assert (reply.status, reply.body) == (400, b'{"error":"Missing sessionId or path"}')


def test_sessions_are_listed_and_ended_whether_they_are_there_or_not() -> None:
    assert parse_list(RawRequest(), BOUNDS) == ListSessions()
    assert parse_delete(RawRequest(params={"id": "s"}), BOUNDS) == DeleteSession("s", missing=True)
    state = SessionState("s", "python", Limits(), 0.0, 1771070400.5, 1.0, True, 3, Usage(), {})
    assert json.loads(render_sessions(ListSessions(), [state], "").body) == {
        "sessions": [{"id": "s", "isActive": True, "lastAccessedAt": "2026-02-14T12:00:00.500Z"}]
    }


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (Unauthenticated(missing=True), 401, "Missing Authorization header"),
        (Unauthenticated(missing=False), 403, "Invalid API key"),
        (UnknownLanguage("x", ("bash", "node")), 400, 'Unknown runtime: "x". Available: bash, node'),
        (SessionNotFound("no session s"), 404, "Session not found"),
        (FileNotInSandbox("a: no such file"), 404, "a: no such file"),
        (InvalidRequest("collect", "no"), 400, "request.outputPaths: no"),
        (InvalidRequest("options.memoryLimit", "no"), 400, "options.memoryLimit: no"),
        (Forbidden("options.image: above"), 403, "options.image: above"),
        (NotSupported("packages: not here"), 501, "packages: not here"),
        (PayloadTooLarge(5), 413, "request body is larger than 5 bytes"),
        (RateLimited("slow down", retry_after_s=2.0), 429, "slow down"),
        (Overloaded("full", retry_after_s=1.0), 503, "full"),
        (GuestLost("x"), 500, "Execution failed: the sandbox could not be used (guest_lost)"),
        (SandforkError("x"), 500, "Execution failed: internal error"),
    ],
)
def test_every_error_has_its_status_and_one_sentence(error: SandforkError, status: int, message: str) -> None:
    reply = render_error(error, "req")
    assert (reply.status, json.loads(reply.body)) == (status, {"error": message})


def test_another_runtime_in_a_session_is_told_as_its_clients_know_it() -> None:
    reply = render_error(WrongLanguage("node", "python"), "")
    assert reply.status == 409
    assert json.loads(reply.body)["error"].startswith('Cannot switch runtime from "python" to "node"')


def test_health_is_ok_or_503() -> None:
    ready = ServiceHealth((TemplateHealth("python", True, 1, 1, 1),), version="0.1.0")
    assert (render_health(ready).status, render_health(ready).body) == (200, b'{"status":"ok","version":"0.1.0"}')
    reply = render_health(ServiceHealth(()))
    assert (reply.status, msgspec.json.decode(reply.body)["status"]) == (503, "unavailable")
