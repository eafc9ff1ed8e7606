"""The root of a server of all dialects: whose POST /execute is, by its body, and what is told before that is known."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from sandfork.access import Access, AccessSettings
from sandfork.dialects import faber, native, runner, zeroboot
from sandfork.dialects.base import BodyMark, Dialect
from sandfork.http.app import App, build_app
from sandfork.http.dispatch import UNIDENTIFIED_BYTES
from sandfork.http.endpoints import HttpSettings
from sandfork.http.log import ExecutionLog
from sandfork.metrics import Metrics
from sandfork.model import Command, Snippet
from tests.support.asgi import Client
from tests.support.clock import in_virtual_time, virtual_loop
from tests.support.stub_engine import StubEngine, stub_app

KEYS = b'["zb_live_key1"]'
KEY = {"Authorization": "Bearer zb_live_key1"}
TASKS = {"tasks": [{"command": "echo", "args": ["hi"]}]}
COMMON = {"error", "details", "detail"}


@in_virtual_time
async def test_a_body_with_tasks_is_fabers() -> None:
    engine = StubEngine()
    answer = await Client(stub_app(engine)).post("/execute", TASKS)
    assert answer.status == 200
    assert set(answer.json) == {"results"}
    assert answer.headers["x-ratelimit-remaining"] == "99"
    assert engine.requests[0].program == Command(("echo", "hi"))


@in_virtual_time
async def test_a_body_with_a_request_is_isol8s() -> None:
    engine = StubEngine()
    answer = await Client(stub_app(engine)).post("/execute", {"request": {"code": "1", "runtime": "python"}})
    assert (answer.status, answer.json["exitCode"]) == (200, 0)
    assert engine.requests[0].program == Snippet("python", "1")
    for request in (None, {}):
        answer = await Client(stub_app()).post("/execute", {"request": request, "code": "1"})
        assert (answer.status, set(answer.json)) == (400, {"error"})


@in_virtual_time
async def test_a_body_with_a_command_or_code_and_no_certain_mark_is_instavms() -> None:
    engine = StubEngine()
    for body in ({"command": "ls", "language": "bash"}, {"code": "ls", "language": "bash"}):
        answer = await Client(stub_app(engine)).post("/execute", body)
        assert (answer.status, answer.json["exit_code"]) == (200, 0)
        assert engine.requests[-1].program == Snippet("bash", "ls")


@pytest.mark.parametrize("rest", [{"code": "1"}, {"command": "ls"}, {"requests": {}}, {"language": "python"}])
@in_virtual_time
async def test_the_mark_of_a_dialect_outweighs_what_others_call_their_fields(rest: dict[str, Any]) -> None:
    assert (await Client(stub_app()).post("/execute", {**TASKS, **rest})).status == 200


@pytest.mark.parametrize("value", [None, 7, "x", [], {}])
@in_virtual_time
async def test_a_mark_of_a_wrong_type_still_names_its_dialect(value: Any) -> None:
    answer = await Client(stub_app()).post("/execute", {"tasks": value})
    assert (answer.status, set(answer.json)) == (400, {"error", "details"})
    assert answer.json["details"].startswith("tasks: ")


@in_virtual_time
async def test_a_body_of_two_dialects_is_refused_and_never_guessed_at() -> None:
    engine = StubEngine()
    answer = await Client(stub_app(engine)).post("/execute", {"request": {"code": "1"}, **TASKS})
    assert (answer.status, set(answer.json)) == (400, COMMON)
    assert "request" in answer.json["details"]
    assert "tasks" in answer.json["details"]
    assert engine.requests == []


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b'{"tasks": [}', 400),
        (b"[]", 400),
        (b'[{"command": "ls"}]', 400),
        (b"null", 400),
        (b"{}", 400),
        (b'{"requests": {}}', 400),
        (b'{"tasks": NaN}', 400),
        (b'{"\\ud800": 1}', 400),
        (b"[" * 100_000, 400),
        (b'{"a": ' + b"[" * 100_000, 400),
        (b'"' + b"x" * 2000, 413),
    ],
)
@in_virtual_time
async def test_what_is_wrong_before_the_dialect_is_known_is_told_in_the_words_of_all(body: bytes, status: int) -> None:
    most = 1000 if status == 413 else 10 << 20
    answer = await Client(stub_app(max_body_bytes=most)).post("/execute", body)
    assert (answer.status, set(answer.json)) == (status, COMMON)
    assert not any(name.startswith("x-ratelimit") for name in answer.headers)


@in_virtual_time
async def test_media_and_methods_are_refused_in_the_words_of_all() -> None:
    client = Client(stub_app())
    media = await client.post("/execute", TASKS, content_type="text/plain")
    method = await client.get("/execute")
    assert (media.status, set(media.json)) == (415, COMMON)
    assert (method.status, set(method.json), method.headers["allow"]) == (405, COMMON, "POST")


@in_virtual_time
async def test_another_method_on_a_path_of_one_dialect_is_refused_in_its_words() -> None:
    answer = await Client(stub_app()).get("/api/v1/execute")
    assert (answer.status, set(answer.json), answer.headers["allow"]) == (405, {"error"}, "POST")


@in_virtual_time
async def test_a_caller_without_a_key_is_refused_by_the_dialect_of_its_body() -> None:
    engine = StubEngine()
    client = Client(stub_app(engine, keys=KEYS))
    answer = await client.post("/execute", TASKS)
    assert (answer.status, set(answer.json)) == (401, {"error", "details"})
    assert engine.requests == []


@in_virtual_time
async def test_a_caller_without_a_key_cannot_have_a_large_body_read() -> None:
    app = stub_app(keys=KEYS)
    body = [json.dumps(TASKS).encode(), *[b" " * 1024] * (UNIDENTIFIED_BYTES // 1024), b"never read"]
    refused = await Client(app).send("POST", "/execute", body)
    assert (refused.status, set(refused.json)) == (401, COMMON)
    body[-1] = b""
    assert (await Client(app, KEY).send("POST", "/execute", body)).status == 200


@in_virtual_time
async def test_a_body_that_stalls_is_408() -> None:
    start = virtual_loop().time()
    answer = await Client(stub_app(body_timeout_s=30.0)).send("POST", "/execute", [])
    assert (answer.status, set(answer.json)) == (408, COMMON)
    assert virtual_loop().time() - start == pytest.approx(30.0, abs=0.01)


@in_virtual_time
async def test_pages_of_other_sites_may_not_run_tasks_on_a_server_without_keys() -> None:
    engine = StubEngine()
    answer = await Client(stub_app(engine)).post("/execute", TASKS, origin="http://evil.example")
    assert (answer.status, set(answer.json)) == (403, {"error", "details"})
    assert engine.requests == []


@in_virtual_time
async def test_addresses_joined_carelessly_work() -> None:
    client = Client(stub_app())
    for path in ("//execute", "/execute/", "/faber//execute", "//faber/execute"):
        assert (await client.post(path, TASKS)).status == 200


@in_virtual_time
async def test_health_at_root_is_our_own_with_every_field_of_the_others() -> None:
    client = Client(stub_app())
    root = (await client.get("/health")).json
    assert root["status"] == "ok"
    for prefix in ("/zeroboot", "/runner", "/faber", "/instavm"):
        assert (await client.get(f"{prefix}/health")).json.keys() <= root.keys()


@in_virtual_time
async def test_a_refusal_is_logged_under_the_dialect_it_was_of() -> None:
    written: list[bytes] = []
    client = Client(stub_app(log=ExecutionLog(written.append, lambda: 0.0)))
    await client.post("/execute", {"tasks": []})
    await client.post("/execute", {"request": {}})
    await client.post("/execute", {"command": 5})
    await client.post("/execute", {})
    lines = [json.loads(line) for line in written]
    assert [(line.get("dialect", ""), line["error"], line["status"]) for line in lines] == [
        ("faber", "invalid_request", 400),
        ("isol8", "invalid_request", 400),
        ("instavm", "invalid_request", 422),
        ("", "invalid_request", 400),
    ]


def app_of(*dialects: Dialect) -> App:
    access = Access(AccessSettings(), clock=lambda: 0.0)
    return build_app(HttpSettings(), StubEngine(), access, Metrics(), dialects)


def marked(name: str, keys: tuple[str, ...], *, certain: bool = True) -> Dialect:
    """Return a dialect that a sixth engineer may add: Faber's, but for its name and its mark."""
    routes = tuple(
        replace(route, mark=BodyMark(keys, certain)) for route in faber.DIALECT.routes if route.path == "/execute"
    )
    return replace(faber.DIALECT, name=name.lower(), title=name, prefix=f"/{name.lower()}", routes=routes, quotas=())


@in_virtual_time
async def test_a_further_dialect_is_told_apart_by_its_own_mark_alone() -> None:
    client = Client(
        app_of(native.DIALECT, zeroboot.DIALECT, runner.DIALECT, faber.DIALECT, marked("isol8", ("request",)))
    )
    assert (await client.post("/execute", {"request": {}, **TASKS})).status == 400
    answer = await client.post("/execute", {"request": {}})
    assert (answer.status, answer.json["details"]) == (400, "tasks: is required")
    assert (await client.post("/execute", {"code": "1"})).status == 400
    assert (await client.post("/execute", TASKS)).status == 200


@in_virtual_time
async def test_a_mark_that_is_not_certain_counts_where_no_other_is() -> None:
    client = Client(app_of(native.DIALECT, faber.DIALECT, marked("InstaVM", ("command", "code"), certain=False)))
    assert (await client.post("/execute", {"code": "1", **TASKS})).status == 200
    answer = await client.post("/execute", {"code": "1"})
    assert (answer.status, answer.json["details"]) == (400, "tasks: is required")


@in_virtual_time
async def test_the_document_of_all_tells_of_every_kind_of_body_at_root() -> None:
    app = app_of(native.DIALECT, faber.DIALECT, marked("isol8", ("request",)))
    document = (await Client(app).get("/openapi.json")).json
    operation = document["paths"]["/execute"]["post"]

    def names(part: dict[str, Any]) -> list[str]:
        return [each["$ref"].rpartition("/")[2] for each in part["content"]["application/json"]["schema"]["anyOf"]]

    assert sorted(names(operation["requestBody"])) == ["faber.ExecBody", "isol8.ExecBody"]
    assert sorted(names(operation["responses"]["200"])) == ["faber.ExecReply", "isol8.ExecReply"]
    assert sorted(names(operation["responses"]["400"])) == ["UndecidedError", "faber.ErrorReply", "isol8.ErrorReply"]
