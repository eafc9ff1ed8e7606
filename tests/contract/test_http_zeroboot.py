"""zeroboot's document, example by example, through the application: under its prefix, at root, and alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from sandfork.dialects import load_dialects, native, zeroboot
from sandfork.dialects.base import ActionRoute, Dialect, ExecRoute, Route
from sandfork.errors import ForkFailed, GuestLost, Overloaded, TemplateFailed, UnknownLanguage
from sandfork.model import Outcome, Snippet, TemplateHealth
from tests.support.asgi import Client
from tests.support.clock import in_virtual_time
from tests.support.dialects import shape
from tests.support.stub_engine import StubEngine, by_code, ended, stub_app

SEVEN_FIELDS = ["id", "stdout", "stderr", "exit_code", "fork_time_ms", "exec_time_ms", "total_time_ms"]
KEYS = b'["zb_live_key1", "zb_live_key2"]'
#: The base address a client is given, and what the server was told to speak.
PLACES = [("", None), ("/zeroboot", None), ("", "zeroboot")]

everywhere = pytest.mark.parametrize(("base", "dialect"), PLACES, ids=["root", "prefix", "alone"])


@everywhere
@in_virtual_time
async def test_the_first_example_is_answered_as_printed(base: str, dialect: str | None) -> None:
    client = Client(stub_app(dialect=dialect))
    answer = await client.post(f"{base}/v1/exec", {"code": "print(1 + 1)", "language": "python", "timeout_seconds": 30})
    expected = {
        "id": "019cf684-1fd5-73c0-9299-52253f9aa79c",
        "stdout": "2\n",
        "stderr": "",
        "exit_code": 0,
        "fork_time_ms": 0.75,
        "exec_time_ms": 7.2,
        "total_time_ms": 8.0,
    }
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    assert {name: answer.json[name] for name in expected} == expected
    assert list(answer.json)[:7] == SEVEN_FIELDS


@in_virtual_time
async def test_the_exact_dialect_answers_with_no_further_field() -> None:
    answer = await Client(stub_app()).post("/zeroboot/v1/exec", {"code": "print(1 + 1)"})
    assert list(answer.json) == SEVEN_FIELDS


@everywhere
@in_virtual_time
async def test_a_batch_is_answered_in_the_order_asked(base: str, dialect: str | None) -> None:
    engine = StubEngine(by_code({"print(1)": ended(stdout=b"1\n"), "console.log(2)": ended(stdout=b"2\n")}))
    executions = [{"code": "print(1)", "language": "python"}, {"code": "console.log(2)", "language": "node"}]
    answer = await Client(stub_app(engine, dialect=dialect)).post(f"{base}/v1/exec/batch", {"executions": executions})
    assert answer.status == 200
    assert [each["stdout"] for each in answer.json["results"]] == ["1\n", "2\n"]
    assert all(list(each)[:7] == SEVEN_FIELDS for each in answer.json["results"])
    assert [request.program for request in engine.requests] == [
        Snippet("python", "print(1)"),
        Snippet("node", "console.log(2)"),
    ]


@everywhere
@in_virtual_time
async def test_health_tells_the_templates_with_their_size(base: str, dialect: str | None) -> None:
    for path in ("/v1/health", "/health"):
        answer = await Client(stub_app(keys=KEYS, dialect=dialect)).get(base + path)
        assert answer.status == 200
        assert answer.json["status"] == "ok"
        for name in ("python", "node"):
            assert answer.json["templates"][name]["ready"] is True
            assert answer.json["templates"][name]["memory_mb"] == 256


@everywhere
@in_virtual_time
async def test_health_is_503_when_no_template_is_ready(base: str, dialect: str | None) -> None:
    engine = StubEngine(templates=(TemplateHealth("python", False, 0, 0, 0, "no interpreter"),))
    answer = await Client(stub_app(engine, dialect=dialect)).get(f"{base}/v1/health")
    assert answer.status == 503
    assert answer.json["status"] != "ok"
    assert answer.json["templates"]["python"]["ready"] is False


@everywhere
@in_virtual_time
async def test_metrics_are_text_and_need_no_key(base: str, dialect: str | None) -> None:
    answer = await Client(stub_app(keys=KEYS, dialect=dialect)).get(f"{base}/v1/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert b"zeroboot_total_executions" in answer.body


@everywhere
@in_virtual_time
async def test_a_key_is_asked_for_as_documented(base: str, dialect: str | None) -> None:
    app = stub_app(keys=KEYS, dialect=dialect)
    body = {"code": "print(1)"}
    missing = await Client(app).post(f"{base}/v1/exec", body)
    wrong = await Client(app).post(f"{base}/v1/exec", body, authorization="Bearer zb_live_other")
    right = await Client(app).post(f"{base}/v1/exec", body, authorization="Bearer zb_live_key1")
    assert (missing.status, missing.json["error"]) == (401, "Missing Authorization header")
    assert (wrong.status, wrong.json["error"]) == (401, "Invalid API key")
    assert right.status == 200


@everywhere
@in_virtual_time
async def test_the_101st_request_of_a_second_is_429(base: str, dialect: str | None) -> None:
    client = Client(stub_app(keys=KEYS, dialect=dialect), {"Authorization": "Bearer zb_live_key2"})
    statuses = [(await client.post(f"{base}/v1/exec", {"code": ""})).status for _ in range(100)]
    refused = await client.post(f"{base}/v1/exec", {"code": ""})
    assert statuses == [200] * 100
    assert (refused.status, refused.json["error"]) == (429, "Rate limit exceeded (100 req/s)")
    assert refused.headers["retry-after"] == "1"


@everywhere
@in_virtual_time
async def test_a_batch_is_charged_one_unit_an_item(base: str, dialect: str | None) -> None:
    client = Client(stub_app(keys=KEYS, dialect=dialect), {"Authorization": "Bearer zb_live_key2"})
    batch = {"executions": [{"code": ""}] * 60}
    assert (await client.post(f"{base}/v1/exec/batch", batch)).status == 200
    assert (await client.post(f"{base}/v1/exec/batch", batch)).status == 429


@everywhere
@in_virtual_time
async def test_an_unknown_language_is_400(base: str, dialect: str | None) -> None:
    engine = StubEngine(lambda request: UnknownLanguage("cobol"))
    client = Client(stub_app(engine, dialect=dialect))
    single = await client.post(f"{base}/v1/exec", {"code": "", "language": "cobol"})
    batch = await client.post(f"{base}/v1/exec/batch", {"executions": [{"code": "", "language": "cobol"}] * 2})
    assert (single.status, single.json["error"]) == (400, "unknown language: cobol")
    assert (batch.status, batch.json["error"]) == (400, "unknown language: cobol")


@everywhere
@pytest.mark.parametrize(
    ("partial", "expected"),
    [
        (b"", "Execution timed out after 2s"),
        (b"half a line", "half a line\nExecution timed out after 2s"),
        (b"a line\n", "a line\nExecution timed out after 2s"),
    ],
)
@in_virtual_time
async def test_a_timeout_is_200_and_keeps_the_output_so_far(
    base: str, dialect: str | None, partial: bytes, expected: str
) -> None:
    def rule(request: Any) -> Any:
        limits = request.limits.over(ended().limits)
        return ended(
            outcome=Outcome.TIMED_OUT, exit_code=None, signal=9, stdout=b"so far", stderr=partial, limits=limits
        )

    client = Client(stub_app(StubEngine(rule), dialect=dialect))
    answer = await client.post(f"{base}/v1/exec", {"code": "while True: pass", "timeout_seconds": 2})
    assert answer.status == 200
    assert (answer.json["exit_code"], answer.json["stdout"], answer.json["stderr"]) == (-1, "so far", expected)


@everywhere
@in_virtual_time
async def test_a_program_that_fails_is_200_with_its_own_status(base: str, dialect: str | None) -> None:
    answers = {
        "exit": ended(exit_code=3, stderr=b"Traceback\n"),
        "segv": ended(outcome=Outcome.SIGNALLED, exit_code=None, signal=11),
        "oom": ended(outcome=Outcome.OUT_OF_MEMORY, exit_code=None, signal=9),
    }
    client = Client(stub_app(StubEngine(by_code(answers)), dialect=dialect))
    replies = [(await client.post(f"{base}/v1/exec", {"code": code})).json for code in answers]
    assert [reply["exit_code"] for reply in replies] == [3, 139, 137]
    assert replies[0]["stderr"] == "Traceback\n"


@everywhere
@in_virtual_time
async def test_output_that_is_no_utf8_is_replaced(base: str, dialect: str | None) -> None:
    engine = StubEngine(lambda request: ended(stdout=b"a\xff\xfeb\0", stderr=b"\xed\xa0\x80"))
    answer = await Client(stub_app(engine, dialect=dialect)).post(f"{base}/v1/exec", {"code": ""})
    assert answer.json["stdout"] == "a��b\0"
    assert answer.json["stderr"] == "���"


@everywhere
@in_virtual_time
async def test_defaults_are_python_and_30_seconds_and_the_maximum_holds(base: str, dialect: str | None) -> None:
    engine = StubEngine()
    client = Client(stub_app(engine, dialect=dialect))
    await client.post(f"{base}/v1/exec", {"code": "x", "surprise": [1, {"two": None}]})
    await client.post(f"{base}/v1/exec", {"code": "x", "timeout_seconds": 10**30})
    first, second = engine.requests
    # Ours has another language in a session that was made with one.
    default = "python" if dialect == "zeroboot" or base else None
    assert (first.program, first.limits.wall_s) == (Snippet(default, "x"), 30.0)
    assert second.limits.wall_s == 300.0


@in_virtual_time
async def test_machinery_that_fails_is_a_result_in_the_exact_dialect() -> None:
    answers = {
        "template": TemplateFailed("secret path"),
        "fork": ForkFailed("secret path", step="clone3", errno=11),
        "lost": GuestLost("secret path"),
    }
    client = Client(stub_app(StubEngine(by_code(answers))))
    replies = [(await client.post("/zeroboot/v1/exec", {"code": code})) for code in answers]
    assert [reply.status for reply in replies] == [200] * 3
    assert [reply.json["exit_code"] for reply in replies] == [-1] * 3
    assert [reply.json["stderr"] for reply in replies] == [
        "No template for language: python",
        "Fork failed: clone3",
        "Process exited unexpectedly",
    ]
    assert all(list(reply.json) == SEVEN_FIELDS and reply.json["id"] for reply in replies)


@everywhere
@in_virtual_time
async def test_an_item_we_could_not_run_stays_in_its_batch(base: str, dialect: str | None) -> None:
    answers = {"full": Overloaded("the queue is full", retry_after_s=2), "fork": ForkFailed("no", step="clone3")}
    client = Client(stub_app(StubEngine(by_code(answers)), dialect=dialect))
    executions = [{"code": code} for code in ("full", "fine", "fork")]
    answer = await client.post(f"{base}/v1/exec/batch", {"executions": executions})
    assert answer.status == 200
    assert [each["exit_code"] for each in answer.json["results"]] == [-1, 0, -1]
    refused = await client.post(f"{base}/v1/exec/batch", {"executions": [{"code": "full"}] * 3})
    assert (refused.status, refused.headers["retry-after"]) == (503, "2")


@everywhere
@in_virtual_time
async def test_a_batch_holds_at_most_a_hundred_and_may_be_empty(base: str, dialect: str | None) -> None:
    client = Client(stub_app(dialect=dialect))
    assert (await client.post(f"{base}/v1/exec/batch", {"executions": []})).json == {"results": []}
    assert (await client.post(f"{base}/v1/exec/batch", {"executions": [{"code": ""}] * 100})).status == 200
    over = await client.post(f"{base}/v1/exec/batch", {"executions": [{"code": ""}] * 101})
    assert over.status == 400
    assert "100" in over.json["error"]


EXAMPLES = [
    pytest.param(dialect, route, example, id=f"{dialect.name} {route.method} {route.path} {example.summary}")
    for dialect in load_dialects()
    for route in dialect.routes
    # What an action or a path with parts answers with is of something that must be there before.
    if not isinstance(route, ActionRoute) and "{" not in route.path
    for example in route.examples
]


@pytest.mark.parametrize(("dialect", "route", "example"), EXAMPLES)
@in_virtual_time
async def test_every_documented_example_is_answered_in_its_shape(dialect: Dialect, route: Route, example: Any) -> None:
    client = Client(stub_app())
    path = dialect.prefix + route.path
    if isinstance(route, ExecRoute):
        answer = await client.post(path, example.request)
    else:
        answer = await client.get(path)
    assert answer.status == example.status
    if example.reply:
        assert shape(answer.json) == shape(json.loads(example.reply))


def test_our_own_api_has_every_field_of_the_exact_one() -> None:
    ours, theirs = native.DIALECT.routes, zeroboot.DIALECT.routes
    assert {(route.method, route.path) for route in theirs} <= {(route.method, route.path) for route in ours}
