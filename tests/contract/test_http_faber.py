"""Faber's document, example by example, through the application: under its prefix, at root, and alone."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from sandfork.access_quotas import Quota
from sandfork.dialects.base import Bounds
from sandfork.errors import Forbidden, ForkFailed, GuestLost, InvalidRequest, Overloaded
from sandfork.model import (
    Command,
    ExecRequest,
    ExecResult,
    InputFile,
    Limits,
    LimitsOverride,
    Outcome,
    SessionKey,
    TemplateHealth,
    Timings,
    Usage,
)
from tests.support.asgi import Answered, Client
from tests.support.clock import in_virtual_time, virtual_loop
from tests.support.dialects import exact_places, places
from tests.support.stub_engine import StubEngine, StubRun, elapse, ended, stub_app

KEYS = b'["zb_live_key1", "zb_live_key2"]'
KEY = {"Authorization": "Bearer zb_live_key1"}
everywhere = places("faber")
exactly = exact_places("faber")

FIRST = {
    "tasks": [
        {
            "command": "echo",
            "args": ["hello", "world"],
            "env": {"CUSTOM_VAR": "value"},
            "files": {"script.py": "print('Hello from Python')"},
            "resource_limits": {
                "memory_limit": 536870912,
                "cpu_time_limit": 30000000000,
                "wall_time_limit": 60000000000,
                "max_processes": 10,
                "max_file_descriptors": 100,
                "max_output_size": 1048576,
            },
        }
    ]
}
NOTHING_EXCEEDED = {
    "cpu_time_limit_exceeded": False,
    "wall_time_limit_exceeded": False,
    "process_limit_exceeded": False,
    "file_descriptor_limit_exceeded": False,
    "output_limit_exceeded": False,
}
ECHOED = ended(
    stdout=b"hello world\n",
    usage=Usage(0.0005, 0.0005, 0.005, 1048576, 524288, 1, 0, 12),
    timings=Timings(0.0, 0.001, 0.005, 0.006),
)
#: What the document's own defaults are, in our units.
DEFAULT_LIMITS = {
    "wall_s": 60.0,
    "cpu_s": 30.0,
    "memory_bytes": 512 << 20,
    "pids": 10,
    "open_files": 100,
    "output_bytes": 1 << 20,
    "disk_bytes": None,
}


def echo(word: str = "hi") -> dict[str, Any]:
    return {"command": "echo", "args": [word]}


def named_limits(request: ExecRequest) -> dict[str, Any]:
    return {name: getattr(request.limits, name) for name in DEFAULT_LIMITS}


def by_last_word(answers: dict[str, ExecResult | BaseException]) -> StubEngine:
    """Return an engine that answers a command by its last word."""

    def rule(request: ExecRequest) -> ExecResult | BaseException:
        assert isinstance(request.program, Command)
        word = request.program.argv[-1]
        return answers.get(word, ended(stdout=word.encode() + b"\n"))

    return StubEngine(rule)


@everywhere
@in_virtual_time
async def test_the_first_example_is_answered_as_printed(base: str, dialect: str | None) -> None:
    engine = StubEngine(lambda request: ECHOED)
    answer = await Client(stub_app(engine, dialect=dialect)).post(f"{base}/execute", FIRST)
    assert answer.status == 200
    assert answer.json == {
        "results": [
            {
                "status": "Success",
                "exit_code": 0,
                "stdout": "hello world\n",
                "stderr": None,
                "error": None,
                "resource_usage": {
                    "cpu_time_ns": 1000000,
                    "wall_time_ns": 5000000,
                    "memory_peak_bytes": 1048576,
                    "memory_current_bytes": 524288,
                    "process_count": 1,
                    "file_descriptors": 3,
                    "io_read_bytes": 0,
                    "io_write_bytes": 12,
                    "system_time_ns": 500000,
                    "user_time_ns": 500000,
                },
                "resource_limits_exceeded": NOTHING_EXCEEDED,
            }
        ]
    }
    (request,) = engine.requests
    assert request.program == Command(("echo", "hello", "world"))
    assert request.env == (("CUSTOM_VAR", "value"),)
    assert request.files == (InputFile("script.py", b"print('Hello from Python')"),)
    assert named_limits(request) == DEFAULT_LIMITS


EXAMPLES: list[tuple[dict[str, Any], ExecRequest]] = [
    ({"command": "ls", "args": ["-la"]}, ExecRequest(Command(("ls", "-la")))),
    (
        {
            "command": "python",
            "args": ["script.py"],
            "files": {"script.py": "print('Hello from Python')\nimport sys\nprint(f'Python version: {sys.version}')"},
        },
        ExecRequest(
            Command(("python", "script.py")),
            files=(
                InputFile(
                    "script.py", b"print('Hello from Python')\nimport sys\nprint(f'Python version: {sys.version}')"
                ),
            ),
        ),
    ),
    (
        {"command": "env", "env": {"CUSTOM_VAR": "custom_value", "DEBUG": "true"}},
        ExecRequest(Command(("env",)), env=(("CUSTOM_VAR", "custom_value"), ("DEBUG", "true"))),
    ),
]


@everywhere
@pytest.mark.parametrize(("task", "expected"), EXAMPLES, ids=["command", "script", "environment"])
@in_virtual_time
async def test_every_task_type_reaches_the_engine(
    base: str, dialect: str | None, task: dict[str, Any], expected: ExecRequest
) -> None:
    engine = StubEngine()
    answer = await Client(stub_app(engine, dialect=dialect)).post(f"{base}/execute", {"tasks": [task]})
    (request,) = engine.requests
    assert answer.status == 200
    assert (request.program, request.files, request.env) == (expected.program, expected.files, expected.env)
    assert named_limits(request) == DEFAULT_LIMITS


@everywhere
@in_virtual_time
async def test_limits_of_a_task_are_in_force_and_the_others_keep_their_defaults(base: str, dialect: str | None) -> None:
    engine = StubEngine()
    task = {
        "command": "python",
        "args": ["-c", "import time; time.sleep(10)"],
        "resource_limits": {
            "memory_limit": 268435456,
            "cpu_time_limit": 5000000000,
            "wall_time_limit": 10000000000,
            "max_processes": 5,
        },
    }
    await Client(stub_app(engine, dialect=dialect)).post(f"{base}/execute", {"tasks": [task]})
    changed = {"memory_bytes": 256 << 20, "cpu_s": 5.0, "wall_s": 10.0, "pids": 5}
    assert named_limits(engine.requests[0]) == DEFAULT_LIMITS | changed


@everywhere
@in_virtual_time
async def test_tasks_run_at_the_same_time_and_are_answered_in_the_order_asked(base: str, dialect: str | None) -> None:
    async def rule(request: ExecRequest) -> ExecResult:
        assert isinstance(request.program, Command)
        word = request.program.argv[-1]
        await elapse({"Task 1": 3.0, 'print("Task 2")': 2.0}.get(word, 1.0))
        return ended(stdout=word.encode())

    engine, started = StubEngine(rule), virtual_loop().time()
    tasks = [
        {"command": "echo", "args": ["Task 1"]},
        {"command": "python", "args": ["-c", 'print("Task 2")']},
        {"command": "bash", "args": ["-c", 'echo "Task 3"']},
    ]
    answer = await Client(stub_app(engine, dialect=dialect)).post(f"{base}/execute", {"tasks": tasks})
    told = [each["stdout"] for each in answer.json["results"]]
    assert told == ["Task 1", 'print("Task 2")', 'echo "Task 3"']
    assert engine.most_running == 3
    assert virtual_loop().time() - started == pytest.approx(3.0, abs=0.01)


def over(outcome: Outcome, **changes: Any) -> ExecResult:
    return ended(
        outcome=outcome, exit_code=None, signal=9, limits=Limits(wall_s=60.0, pids=10, open_files=100), **changes
    )


VERDICTS = {
    "success": (ended(), "Success", None, 0),
    "failure": (ended(exit_code=3), "Failure", None, 3),
    "signal": (ended(outcome=Outcome.SIGNALLED, exit_code=None, signal=11), "Failure", None, 139),
    "wall": (over(Outcome.TIMED_OUT), "Timeout", "wall_time_limit_exceeded", 137),
    "cpu": (over(Outcome.CPU_LIMIT), "CpuLimitExceeded", "cpu_time_limit_exceeded", 137),
    "memory": (over(Outcome.OUT_OF_MEMORY), "MemoryLimitExceeded", None, 137),
    "processes": (over(Outcome.PIDS_LIMIT), "ResourceLimitExceeded", "process_limit_exceeded", 137),
    "output": (over(Outcome.OUTPUT_LIMIT), "ResourceLimitExceeded", "output_limit_exceeded", 137),
    "disk": (over(Outcome.DISK_LIMIT), "ResourceLimitExceeded", None, 137),
    "policy": (over(Outcome.POLICY_VIOLATION), "Failure", None, 137),
    "files": (
        ended(exit_code=1, stderr=b"OSError: [Errno 24] Too many open files: 'x'\n"),
        "ResourceLimitExceeded",
        "file_descriptor_limit_exceeded",
        1,
    ),
    "host's files": (ended(exit_code=1, stderr=b"Too many open files in system\n"), "Failure", None, 1),
    "files told of": (ended(exit_code=0, stderr=b"Too many open files\n"), "Success", None, 0),
    "not executed": (InvalidRequest("files", "a path must not contain '..'"), "NotExecuted", None, None),
}


@everywhere
@pytest.mark.parametrize("name", VERDICTS)
@in_virtual_time
async def test_every_end_has_its_status_and_its_flag(base: str, dialect: str | None, name: str) -> None:
    outcome, status, flag, exit_code = VERDICTS[name]
    engine = by_last_word({"x": outcome})
    answer = await Client(stub_app(engine, dialect=dialect)).post(f"{base}/execute", {"tasks": [echo("x")]})
    assert answer.status == 200
    (result,) = answer.json["results"]
    assert (result["status"], result["exit_code"]) == (status, exit_code)
    assert result["resource_limits_exceeded"] == NOTHING_EXCEEDED | ({flag: True} if flag else {})
    plain = status == "Success" or (name in ("failure", "host's files"))
    assert (result["error"] is None) == plain


def test_every_status_of_the_document_is_reached() -> None:
    assert {status for _, status, _, _ in VERDICTS.values()} == {
        "Success",
        "Failure",
        "NotExecuted",
        "ResourceLimitExceeded",
        "Timeout",
        "MemoryLimitExceeded",
        "CpuLimitExceeded",
    }


@everywhere
@in_virtual_time
async def test_output_is_null_where_there_is_none_and_replaced_where_it_is_no_utf8(
    base: str, dialect: str | None
) -> None:
    engine = by_last_word({"a": ended(stdout=b"", stderr=b"\xff"), "b": ended(stdout=b"x", stderr=b"")})
    answer = await Client(stub_app(engine, dialect=dialect)).post(f"{base}/execute", {"tasks": [echo("a"), echo("b")]})
    first, second = answer.json["results"]
    assert (first["stdout"], first["stderr"]) == (None, "�")
    assert (second["stdout"], second["stderr"]) == ("x", None)


@everywhere
@in_virtual_time
async def test_a_command_that_cannot_be_started_is_a_failure_with_its_code(base: str, dialect: str | None) -> None:
    answers = {"nosuch": ended(exit_code=127, stdout=b""), "/etc": ended(exit_code=126, stdout=b"")}
    shell = {"sh": ended(exit_code=127, stdout=b"", stderr=b"sh: x: not found\n")}
    tasks = [{"command": command} for command in ("nosuch", "/etc", "sh")]
    engine = by_last_word(answers | shell)
    results = (await Client(stub_app(engine, dialect=dialect)).post(f"{base}/execute", {"tasks": tasks})).json[
        "results"
    ]
    assert [(each["status"], each["exit_code"], each["error"]) for each in results] == [
        ("Failure", 127, "command not found: nosuch"),
        ("Failure", 126, "command cannot be executed: /etc"),
        ("Failure", 127, None),
    ]


@everywhere
@in_virtual_time
async def test_a_task_that_cannot_be_prepared_is_not_executed_and_the_others_run(
    base: str, dialect: str | None
) -> None:
    engine = by_last_word({"env": InvalidRequest("env", "'A B' is no name")})
    tasks = [echo("1"), echo("env"), {"command": "cat", "files": {"/etc/passwd": "x"}}, echo("4")]
    answer = await Client(stub_app(engine, dialect=dialect)).post(f"{base}/execute", {"tasks": tasks})
    results = answer.json["results"]
    assert [each["status"] for each in results] == ["Success", "NotExecuted", "NotExecuted", "Success"]
    assert [each["stdout"] for each in results] == ["1\n", None, None, "4\n"]
    assert results[1]["error"] == "env: 'A B' is no name"
    assert results[2]["error"] == "files: /etc/passwd: a path must be relative to the work directory"
    assert results[2]["exit_code"] is None
    assert set(results[2]["resource_usage"].values()) == {0}


@everywhere
@in_virtual_time
async def test_what_this_server_could_not_run_is_told_of_that_task_only(base: str, dialect: str | None) -> None:
    answers = {"2": ForkFailed("a secret"), "3": Overloaded("the queue is full"), "4": GuestLost("a secret")}
    tasks = [echo(str(number)) for number in range(1, 5)]
    answer = await Client(stub_app(by_last_word(answers), dialect=dialect)).post(f"{base}/execute", {"tasks": tasks})
    results = answer.json["results"]
    assert [each["status"] for each in results] == ["Success", "NotExecuted", "NotExecuted", "Failure"]
    assert b"secret" not in answer.body


@everywhere
@in_virtual_time
async def test_when_no_task_could_be_run_the_request_fails(base: str, dialect: str | None) -> None:
    engine = by_last_word({"broken": ForkFailed("a secret"), "full": Overloaded("full", retry_after_s=2)})
    client = Client(stub_app(engine, dialect=dialect))
    broken = await client.post(f"{base}/execute", {"tasks": [echo("broken")]})
    full = await client.post(f"{base}/execute", {"tasks": [echo("full"), echo("full")]})
    assert (broken.status, broken.json) == (
        500,
        {"error": "Internal server error", "details": "Failed to execute task"},
    )
    assert (full.status, full.headers["retry-after"]) == (503, "2")


@everywhere
@in_virtual_time
async def test_an_empty_command_is_refused_in_the_documents_words(base: str, dialect: str | None) -> None:
    client = Client(stub_app(dialect=dialect))
    for command in ("", " ", "\t\n"):
        answer = await client.post(f"{base}/execute", {"tasks": [{"command": command}]})
        assert answer.status == 400
        assert answer.json == {"error": "Validation error", "details": "Invalid command: command cannot be empty"}
    answer = await client.post(f"{base}/execute", {"tasks": [echo(), {"command": ""}]})
    assert answer.json["details"] == "Invalid command: command cannot be empty (tasks[1])"


@everywhere
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"tasks": []}, "tasks"),
        ({"tasks": None}, "tasks"),
        ({"tasks": {}}, "tasks"),
        ({"tasks": ["echo"]}, "tasks[0]"),
        ({"tasks": [{}]}, "tasks[0].command"),
        ({"tasks": [{"command": 7}]}, "tasks[0].command"),
        ({"tasks": [echo(), {"command": "a", "args": "b"}]}, "tasks[1].args"),
        ({"tasks": [{"command": "a", "args": [1]}]}, "tasks[0].args[0]"),
        ({"tasks": [{"command": "a", "env": ["A=1"]}]}, "tasks[0].env"),
        ({"tasks": [{"command": "a", "env": {"A": 1}}]}, "tasks[0].env[...]"),
        ({"tasks": [{"command": "a", "files": {"f": {"base64": ""}}}]}, "tasks[0].files[...]"),
        ({"tasks": [{"command": "a", "resource_limits": 5}]}, "tasks[0].resource_limits"),
        (
            {"tasks": [{"command": "a", "resource_limits": {"memory_limit": -1}}]},
            "tasks[0].resource_limits.memory_limit",
        ),
        (
            {"tasks": [{"command": "a", "resource_limits": {"wall_time_limit": 0}}]},
            "tasks[0].resource_limits.wall_time_limit",
        ),
        (
            {"tasks": [{"command": "a", "resource_limits": {"max_processes": 1.5}}]},
            "tasks[0].resource_limits.max_processes",
        ),
        (
            {"tasks": [{"command": "a", "resource_limits": {"max_output_size": 1 << 64}}]},
            "tasks[0].resource_limits.max_output_size",
        ),
        ({"tasks": [echo()] * 101}, "tasks"),
        ({"tasks": [echo()], "sequential": "yes"}, "sequential"),
    ],
)
@in_virtual_time
async def test_a_malformed_request_is_400_as_a_whole(
    base: str, dialect: str | None, body: dict[str, Any], field: str
) -> None:
    engine = StubEngine()
    answer = await Client(stub_app(engine, dialect=dialect)).post(f"{base}/execute", body)
    assert (answer.status, answer.json["error"]) == (400, "Validation error")
    assert answer.json["details"].startswith(f"{field}: ")
    assert set(answer.json) == {"error", "details"}
    assert engine.requests == []


@everywhere
@in_virtual_time
async def test_optional_fields_may_be_null_and_unknown_ones_are_ignored(base: str, dialect: str | None) -> None:
    engine = StubEngine()
    limits = dict.fromkeys(FIRST["tasks"][0]["resource_limits"])  # type: ignore[call-overload]
    tasks = [
        {"command": "ls", "args": None, "env": None, "files": None, "resource_limits": None, "stdin": 7},
        {"command": "ls", "resource_limits": limits},
    ]
    answer = await Client(stub_app(engine, dialect=dialect)).post(f"{base}/execute", {"tasks": tasks, "more": 1})
    assert answer.status == 200
    assert [named_limits(request) for request in engine.requests] == [DEFAULT_LIMITS] * 2


@everywhere
@in_virtual_time
async def test_times_above_the_maximum_are_lowered_and_other_limits_refused(base: str, dialect: str | None) -> None:
    engine = StubEngine()
    maximum = Limits(300.0, 200.0, 1 << 30, 256, 1024, 16 << 20, 1 << 30)
    client = Client(stub_app(engine, dialect=dialect, bounds=Bounds(ceilings=maximum)))
    huge = {"wall_time_limit": 10**400, "cpu_time_limit": (1 << 64) - 1}
    answer = await client.post(f"{base}/execute", {"tasks": [{"command": "ls", "resource_limits": huge}]})
    assert answer.status == 200
    assert (engine.requests[0].limits.wall_s, engine.requests[0].limits.cpu_s) == (300.0, 200.0)
    task = {"command": "ls", "resource_limits": {"memory_limit": (1 << 30) + 1}}
    refused = await client.post(f"{base}/execute", {"tasks": [echo(), task]})
    assert (refused.status, refused.json["error"]) == (403, "Access denied")
    assert refused.json["details"].startswith("tasks[1].resource_limits.memory_limit: ")
    assert len(engine.requests) == 1


@everywhere
@in_virtual_time
async def test_defaults_are_lowered_to_the_ceilings_of_a_key_and_what_it_asks_for_is_refused(
    base: str, dialect: str | None
) -> None:
    ceilings = {"wall_s": 2, "cpu_s": 1, "memory_bytes": 64 << 20, "pids": 4, "output_bytes": 1000}
    keys = json.dumps([{"name": "small", "key": "k1", "ceilings": ceilings}]).encode()
    engine = StubEngine()
    client = Client(stub_app(engine, keys=keys, dialect=dialect), {"X-API-Key": "k1"})
    assert (await client.post(f"{base}/execute", {"tasks": [echo()]})).status == 200
    lowered = {"wall_s": 2.0, "cpu_s": 1.0, "memory_bytes": 64 << 20, "pids": 4, "output_bytes": 1000}
    assert named_limits(engine.requests[0]) == DEFAULT_LIMITS | lowered
    task = {"command": "ls", "resource_limits": {"max_processes": 5}}
    assert (await client.post(f"{base}/execute", {"tasks": [task]})).status == 403


@everywhere
@in_virtual_time
async def test_a_ceiling_that_only_the_engine_knows_refuses_the_request(base: str, dialect: str | None) -> None:
    engine = by_last_word({"x": Forbidden("limits.disk_bytes: 5 is above the server's ceiling of 4")})
    answer = await Client(stub_app(engine, dialect=dialect)).post(f"{base}/execute", {"tasks": [echo("x"), echo()]})
    assert (answer.status, answer.json["error"]) == (403, "Access denied")


def in_turn(*tasks: dict[str, Any]) -> dict[str, Any]:
    return {"tasks": tasks, "sequential": True}


@everywhere
@in_virtual_time
async def test_sequential_tasks_run_one_by_one_in_one_session_that_ends_with_them(
    base: str, dialect: str | None
) -> None:
    engine = by_last_word({})
    answer = await Client(stub_app(engine, dialect=dialect)).post(f"{base}/execute", in_turn(*map(echo, "abc")))
    assert [result["stdout"] for result in answer.json["results"]] == ["a\n", "b\n", "c\n"]
    assert engine.most_running == 1
    (session,) = {request.session for request in engine.requests}
    assert session is not None
    assert (session.space, session.make, session.fresh) == ("faber", None, True)
    assert engine.sessions.list("faber", engine.callers[0].key_id) == []
    engine.requests.clear()
    await Client(stub_app(engine, dialect=dialect)).post(f"{base}/execute", {"tasks": [echo()], "sequential": False})
    assert engine.requests[0].session is None


@in_virtual_time
async def test_two_sequential_requests_share_nothing() -> None:
    engine = by_last_word({})
    client = Client(stub_app(engine))
    for _ in range(2):
        await client.post("/faber/execute", in_turn(echo()))
    first, second = (request.session for request in engine.requests)
    assert first is not None
    assert second is not None
    assert first.name != second.name


@pytest.mark.parametrize(
    ("ending", "status"),
    [
        (ended(exit_code=1), "Failure"),
        (ended(outcome=Outcome.TIMED_OUT, exit_code=None, signal=9), "Timeout"),
        (ended(outcome=Outcome.OUT_OF_MEMORY, exit_code=None, signal=9), "MemoryLimitExceeded"),
        (ended(outcome=Outcome.OUTPUT_LIMIT, exit_code=0), "ResourceLimitExceeded"),
        (InvalidRequest("env", "no"), "NotExecuted"),
        (GuestLost("gone"), "Failure"),
    ],
)
@in_virtual_time
async def test_after_the_first_sequential_task_that_is_no_success_the_rest_are_not_executed(
    ending: ExecResult | Exception, status: str
) -> None:
    engine = by_last_word({"b": ending})
    answer = await Client(stub_app(engine)).post("/faber/execute", in_turn(*map(echo, "abcd")))
    results = answer.json["results"]
    assert [result["status"] for result in results] == ["Success", status, "NotExecuted", "NotExecuted"]
    assert results[3]["error"] == "an earlier one of this request did not succeed"
    assert (results[3]["exit_code"], results[3]["stdout"]) == (None, None)
    assert len(engine.requests) == 2
    assert engine.sessions.list("faber", engine.callers[0].key_id) == []


@in_virtual_time
async def test_a_sequential_task_that_cannot_be_prepared_is_where_the_others_end() -> None:
    engine = by_last_word({})
    unfit = {"command": "cat", "files": {"/etc/passwd": "x"}}
    answer = await Client(stub_app(engine)).post("/faber/execute", in_turn(echo("a"), unfit, echo("b")))
    assert [result["status"] for result in answer.json["results"]] == ["Success", "NotExecuted", "NotExecuted"]
    assert "/etc/passwd" in answer.json["results"][1]["error"]
    first = await Client(stub_app(engine)).post("/faber/execute", in_turn(unfit, echo("b")))
    assert [result["status"] for result in first.json["results"]] == ["NotExecuted", "NotExecuted"]
    assert len(engine.requests) == 1


@in_virtual_time
async def test_sequential_tasks_have_their_own_times_and_the_most_of_what_they_share() -> None:
    made = []

    class Engine(StubEngine):
        async def execute(self, request: ExecRequest, *others: Any) -> ExecResult:
            assert request.session is not None
            made.append(self.sessions.find(SessionKey("faber", others[0].key_id, request.session.name)).spec)
            return await super().execute(request, *others)

    engine = Engine()
    small = {"memory_limit": 64 << 20, "max_processes": 3, "wall_time_limit": 10**9, "max_output_size": 10}
    large = {"memory_limit": 128 << 20, "max_file_descriptors": 200}
    tasks = [{**echo(), "resource_limits": limits} for limits in (small, large)]
    assert (await Client(stub_app(engine)).post("/faber/execute", in_turn(*tasks))).status == 200
    assert {spec.limits for spec in made} == {LimitsOverride(memory_bytes=128 << 20, pids=10, open_files=200)}
    assert [request.limits for request in engine.requests] == [
        LimitsOverride(wall_s=1.0, cpu_s=30.0, output_bytes=10),
        LimitsOverride(wall_s=60.0, cpu_s=30.0, output_bytes=1 << 20),
    ]


@in_virtual_time
async def test_sequential_tasks_of_which_none_could_begin_for_want_of_room_are_503() -> None:
    engine = by_last_word({"a": Overloaded("full", retry_after_s=2.0)})
    answer = await Client(stub_app(engine)).post("/faber/execute", in_turn(echo("a"), echo("b")))
    assert (answer.status, answer.headers["retry-after"]) == (503, "2")


@in_virtual_time
async def test_the_session_of_sequential_tasks_ends_when_their_client_goes_away() -> None:
    begun, gone = asyncio.Event(), asyncio.Event()

    async def never(run: StubRun) -> ExecResult:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    engine = StubEngine(script=never)
    body = json.dumps(in_turn(echo("a"), echo("b"))).encode()
    asking = asyncio.create_task(Client(stub_app(engine)).send("POST", "/faber/execute", [body], gone=gone))
    await begun.wait()
    owner = engine.callers[0].key_id
    assert len(engine.sessions.list("faber", owner)) == 1
    gone.set()
    assert (await asking).status == 0
    assert engine.cancelled == 1
    assert len(engine.requests) == 1
    assert engine.sessions.list("faber", owner) == []


@everywhere
@in_virtual_time
async def test_a_missing_key_is_401_and_a_wrong_one_403_in_the_documents_words(base: str, dialect: str | None) -> None:
    app = stub_app(keys=KEYS, dialect=dialect)
    missing = await Client(app).post(f"{base}/execute", FIRST)
    wrong = await Client(app).post(f"{base}/execute", FIRST, authorization="Bearer your-api-key-here")
    assert (missing.status, missing.json) == (
        401,
        {"error": "Authentication required", "details": "API key is required for this endpoint"},
    )
    assert (wrong.status, wrong.json) == (403, {"error": "Access denied", "details": "Invalid API key"})
    assert (await Client(app, KEY).post(f"{base}/execute", FIRST)).status == 200


@exactly
@in_virtual_time
async def test_a_body_too_large_is_413_in_the_documents_words(base: str, dialect: str | None) -> None:
    client = Client(stub_app(dialect=dialect, max_body_bytes=100))
    answer = await client.post(f"{base}/execute", FIRST)
    assert (answer.status, answer.json) == (
        413,
        {"error": "Request too large", "details": "Request body exceeds maximum size limit"},
    )


def standing(answer: Answered) -> tuple[int, int, int]:
    limit, remaining, reset = (answer.headers[f"x-ratelimit-{word}"] for word in ("limit", "remaining", "reset"))
    return int(limit), int(remaining), int(reset)


@everywhere
@in_virtual_time
async def test_the_101st_task_of_a_minute_is_429_and_the_headers_told_so(base: str, dialect: str | None) -> None:
    loop = virtual_loop()
    client = Client(stub_app(dialect=dialect, clock=loop.time, now=lambda: 1640995139.5 + loop.time()))
    start = loop.time()
    first = await client.post(f"{base}/execute", {"tasks": [echo()] * 5})
    assert standing(first) == (100, 95, round(1640995139.5 + start + 60.0 + 0.5))
    await elapse(10.0)
    last = await client.post(f"{base}/execute", {"tasks": [echo()] * 95})
    assert (last.status, standing(last)[1]) == (200, 0)
    refused = await client.post(f"{base}/execute", {"tasks": [echo()]})
    assert (refused.status, refused.json) == (
        429,
        {"error": "Rate limit exceeded", "details": "Too many requests, please try again later"},
    )
    assert (standing(refused)[:2], refused.headers["retry-after"]) == ((100, 0), "50")
    await elapse(50.0)
    assert standing(await client.post(f"{base}/execute", {"tasks": [echo()]}))[1] == 99


@everywhere
@in_virtual_time
async def test_the_1001st_task_of_an_hour_of_one_key_is_429_wherever_it_comes_from(
    base: str, dialect: str | None
) -> None:
    app = stub_app(keys=KEYS, dialect=dialect, clock=virtual_loop().time)
    clients = [Client(app, KEY, f"192.0.2.{number}") for number in range(11)]
    statuses = []
    for client in clients:
        await elapse(1.0)  # the rate of the key itself is 100 a second
        statuses.append((await client.post(f"{base}/execute", {"tasks": [echo()] * 100})).status)
    assert statuses == [200] * 10 + [429]
    refused = await clients[-1].post(f"{base}/execute", {"tasks": [echo()]})
    assert standing(refused)[:2] == (1000, 0)
    other = Client(app, {"Authorization": "Bearer zb_live_key2"}, "192.0.2.10")
    assert (await other.post(f"{base}/execute", {"tasks": [echo()]})).status == 200


@exactly
@in_virtual_time
async def test_every_answer_of_this_dialect_tells_the_standing(base: str, dialect: str | None) -> None:
    client = Client(stub_app(keys=KEYS, dialect=dialect))
    keyed = {"authorization": "Bearer zb_live_key1"}
    answers = {
        200: await client.post(f"{base}/execute", FIRST, **keyed),
        400: await client.post(f"{base}/execute", b"{", **keyed),
        401: await client.post(f"{base}/execute", FIRST),
        403: await client.post(f"{base}/execute", FIRST, authorization="Bearer no"),
        404: await client.get(f"{base}/nothing"),
        405: await client.get(f"{base}/execute"),
        415: await client.post(f"{base}/execute", FIRST, content_type="text/plain"),
    }
    assert {status: answer.status for status, answer in answers.items()} == {status: status for status in answers}
    others = [await client.get(base + path) for path in ("/health", "/swagger-ui", "/api-docs/openapi.json")]
    assert [standing(answer)[:2] for answer in (*answers.values(), *others)] == [(100, 99)] * 10
    assert all(set(answer.json) == {"error", "details"} for status, answer in answers.items() if status != 200)


@in_virtual_time
async def test_a_malformed_request_costs_nothing_and_a_task_not_executed_its_unit() -> None:
    client = Client(stub_app())
    assert standing(await client.post("/faber/execute", {"tasks": [{"command": ""}]}))[1] == 100
    tasks = [{"command": "cat", "files": {"/x": ""}}, echo()]
    assert standing(await client.post("/faber/execute", {"tasks": tasks}))[1] == 98


@in_virtual_time
async def test_no_other_dialect_is_held_to_these_quotas_or_tells_of_them() -> None:
    client = Client(stub_app())
    assert (await client.post("/faber/execute", {"tasks": [echo()] * 100})).status == 200
    answer = await client.post("/v1/exec", {"code": ""})
    assert answer.status == 200
    assert not any(name.startswith("x-ratelimit") for name in answer.headers)


@in_virtual_time
async def test_quotas_can_be_set_otherwise_or_be_none() -> None:
    client = Client(stub_app(quotas={"faber": (Quota(2, 60.0, "address"),)}))
    answers = [await client.post("/faber/execute", {"tasks": [echo()]}) for _ in range(3)]
    assert [answer.status for answer in answers] == [200, 200, 429]
    none = await Client(stub_app(quotas={"faber": ()})).post("/faber/execute", {"tasks": [echo()]})
    assert (none.status, "x-ratelimit-limit" in none.headers) == (200, False)


@exactly
@in_virtual_time
async def test_health_is_answered_as_printed_without_a_key(base: str, dialect: str | None) -> None:
    answer = await Client(stub_app(keys=KEYS, dialect=dialect, now=lambda: 1704110400.25)).get(f"{base}/health")
    assert answer.status == 200
    assert answer.json == {"status": "healthy", "timestamp": "2024-01-01T12:00:00Z", "version": "1.2.3"}


@exactly
@in_virtual_time
async def test_health_is_503_when_no_template_is_ready(base: str, dialect: str | None) -> None:
    engine = StubEngine(templates=(TemplateHealth("command", False, 0, 0, 0, "no"),))
    answer = await Client(stub_app(engine, dialect=dialect)).get(f"{base}/health")
    assert (answer.status, answer.json["status"]) == (503, "unhealthy")


@everywhere
@in_virtual_time
async def test_the_document_and_its_page_are_served_where_the_document_says(base: str, dialect: str | None) -> None:
    client = Client(stub_app(keys=KEYS, dialect=dialect))
    document = await client.get(f"{base}/api-docs/openapi.json")
    assert document.status == 200
    assert f"{base}/execute" in document.json["paths"]
    for path in ("/swagger-ui", "/swagger-ui/"):
        page = await client.get(base + path)
        assert (page.status, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert f'href="{base}/api-docs/openapi.json"'.encode() in page.body
        assert "default-src 'none'" in page.headers["content-security-policy"]
        assert b"{{" not in page.body
