"""Sessions, their files and terminals, and tasks at /v1: whose they are, what each answers, how each is refused."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sandfork.access import AccessSettings
from sandfork.errors import ForkFailed, TierUnavailable
from sandfork.model import Display, ExecResult, OutputFile, SessionKey, SessionUse
from tests.support.asgi import Answered, Client
from tests.support.clock import in_virtual_time, pass_time, settle, virtual_loop
from tests.support.stub_engine import StubEngine, StubRun, ended, stub_app

KEYS = b'[{"name": "one", "key": "k1"}, {"name": "two", "key": "k2"}]'
OWNER = "address:127.0.0.1"


def client_of(engine: StubEngine, **settings: Any) -> Client:
    return Client(stub_app(engine, **settings))


async def made(client: Client, **body: Any) -> str:
    answer = await client.post("/v1/sessions", {"id": "s", **body})
    assert answer.status == 201
    return str(answer.json["id"])


async def call(client: Client, method: str, path: str, body: bytes = b"", **headers: str) -> Answered:
    return await client.send(method, path, [body], list(headers.items()))


@in_virtual_time
async def test_a_session_is_made_told_listed_and_ended() -> None:
    client = client_of(StubEngine(now=lambda: 1704110400.0))
    body = {"language": "node", "limits": {"memory_bytes": 1 << 28}, "lifetime_s": 60, "metadata": {"team": "a"}}
    first = await client.post("/v1/sessions", body)
    assert first.status == 201
    assert (first.json["language"], first.json["metadata"]) == ("node", {"team": "a"})
    assert (first.json["created_at"], first.json["expires_at"]) == ("2024-01-01T12:00:00Z", "2024-01-01T12:01:00Z")
    assert first.json["limits"]["memory_bytes"] == 1 << 28
    assert (first.json["busy"], first.json["executions"]) == (False, 0)
    name = first.json["id"]
    assert len(name) >= 32
    assert (await client.get(f"/v1/sessions/{name}")).json == first.json
    await made(client)
    assert [each["id"] for each in (await client.get("/v1/sessions")).json["sessions"]] == [name, "s"]
    assert (await call(client, "DELETE", f"/v1/sessions/{name}")).json == {"ok": True}
    assert (await client.get(f"/v1/sessions/{name}")).status == 404
    assert (await call(client, "DELETE", f"/v1/sessions/{name}")).status == 404


@in_virtual_time
async def test_an_empty_body_makes_a_session_of_defaults() -> None:
    engine = StubEngine()
    answer = await client_of(engine).post("/v1/sessions", b"")
    assert answer.status == 201
    session = engine.sessions.find(SessionKey("native", OWNER, answer.json["id"]))
    assert session.spec.language is None


@in_virtual_time
async def test_a_session_that_is_there_cannot_be_made_again() -> None:
    client = client_of(StubEngine())
    await made(client)
    answer = await client.post("/v1/sessions", {"id": "s"})
    assert (answer.status, answer.json["code"]) == (400, "invalid_request")


PLACES = [
    ("GET", ""),
    ("DELETE", ""),
    ("POST", "/interrupt"),
    ("POST", "/exec"),
    ("GET", "/files"),
    ("GET", "/files/a"),
    ("PUT", "/files/a"),
    ("DELETE", "/files/a"),
    ("POST", "/terminals"),
    ("GET", "/terminals"),
    ("GET", "/terminals/t"),
    ("PATCH", "/terminals/t"),
    ("DELETE", "/terminals/t"),
]
BODIES = {"/exec": b'{"code": "x"}', "/terminals/t": b'{"cols": 80, "rows": 24}'}


@pytest.mark.parametrize(("method", "rest"), PLACES)
@in_virtual_time
async def test_another_keys_session_is_one_that_is_not_there(method: str, rest: str) -> None:
    app = stub_app(StubEngine(), keys=KEYS)
    mine, other = Client(app, {"x-api-key": "k1"}), Client(app, {"x-api-key": "k2"})
    await made(mine)
    await mine.post("/v1/sessions/s/terminals", {})
    await call(mine, "PUT", "/v1/sessions/s/files/a", b"content")
    body = BODIES.get(rest, b"")
    missing = await call(other, method, f"/v1/sessions/none{rest}", body)
    answer = await call(other, method, f"/v1/sessions/s{rest}", body)
    assert (answer.status, answer.json["code"]) == (404, "session_not_found")
    assert answer.json.keys() == missing.json.keys()
    assert answer.json["error"] == missing.json["error"].replace("session none", "session s")
    assert (await mine.get("/v1/sessions/s")).status == 200


@pytest.mark.parametrize(("method", "rest"), [*PLACES, ("POST", "s"), ("GET", "s")])
@in_virtual_time
async def test_no_place_is_open_without_a_key(method: str, rest: str) -> None:
    path = f"/v1/sessions/s{rest}" if rest != "s" else "/v1/sessions"
    answer = await call(Client(stub_app(StubEngine(), keys=KEYS)), method, path, b"{}")
    assert (answer.status, answer.json["code"]) == (401, "unauthenticated")


@pytest.mark.parametrize(("method", "rest"), PLACES)
@in_virtual_time
async def test_in_open_mode_pages_of_other_sites_reach_no_session(method: str, rest: str) -> None:
    client = client_of(StubEngine())
    await made(client)
    answer = await call(client, method, f"/v1/sessions/s{rest}", BODIES.get(rest, b""), origin="http://evil.example")
    assert (answer.status, answer.json["code"]) == (403, "cross_origin")


@in_virtual_time
async def test_programs_run_in_the_session_that_is_named_either_way() -> None:
    engine = StubEngine(lambda request: ended(state_lost=True, displays=(Display("result", {"text/plain": "4"}),)))
    client = client_of(engine)
    await made(client)
    first = await client.post("/v1/sessions/s/exec", {"code": "x", "fresh": True})
    second = await client.post("/v1/exec", {"code": "x", "session": "s", "rich": True})
    assert [each.session for each in engine.requests] == [
        SessionUse("native", "s", fresh=True),
        SessionUse("native", "s"),
    ]
    assert (first.json["state_lost"], second.json["state_lost"]) == (True, True)
    assert second.json["displays"] == [{"kind": "result", "data": {"text/plain": "4"}}]
    assert (await client.get("/v1/sessions/s")).json["executions"] == 2


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/exec", {"code": "x", "session": ""}, "session"),
        ("/v1/sessions", {"idle_s": 0}, "idle_s"),
        ("/v1/sessions", {"id": ""}, "id"),
        ("/v1/sessions", {"id": "x" * 201}, "id"),
        ("/v1/sessions", {"metadata": {"a": 1}}, "metadata[...]"),
        ("/v1/sessions/s/terminals", {"cols": 0}, "cols"),
        ("/v1/sessions/s/terminals", {"argv": []}, "argv"),
        ("/v1/tasks", {}, "code"),
    ],
)
@in_virtual_time
async def test_a_wrong_field_is_told_by_its_name(path: str, body: dict[str, Any], field: str) -> None:
    client = client_of(StubEngine())
    await made(client)
    answer = await client.post(path, body)
    assert (answer.status, answer.json["field"]) == (400, field)


@in_virtual_time
async def test_a_run_in_a_session_is_told_while_it_goes() -> None:
    client = client_of(StubEngine())
    await made(client)
    answer = client.begin("POST", "/v1/sessions/s/exec", {"code": "x", "stream": True})
    await answer.end()
    assert [each["type"] for each in answer.events] == ["started", "stdout", "result"]
    assert answer.events[-1]["state_lost"] is False


@in_virtual_time
async def test_runs_of_one_session_come_one_after_another() -> None:
    async def a_second(request: Any) -> ExecResult:
        await pass_time(1)
        return ended()

    engine = StubEngine(a_second)
    client, start_s = client_of(engine), virtual_loop().time()
    await made(client)
    await asyncio.gather(*(client.post("/v1/sessions/s/exec", {"code": "x"}) for _ in range(3)))
    assert engine.most_running == 1
    assert virtual_loop().time() - start_s == pytest.approx(3, abs=0.1)


@in_virtual_time
async def test_what_runs_in_a_session_can_be_interrupted() -> None:
    async def script(run: StubRun) -> ExecResult:
        return ended(exit_code=None, signal=await run.signalled())

    client = client_of(StubEngine(script=script))
    await made(client)
    running = asyncio.create_task(client.post("/v1/sessions/s/exec", {"code": "x"}))
    await settle()
    assert (await client.get("/v1/sessions/s")).json["busy"] is True
    assert (await client.post("/v1/sessions/s/interrupt", b"")).json == {"ok": True}
    assert (await running).json["signal"] == 2


@in_virtual_time
async def test_what_runs_in_a_session_that_is_ended_fails() -> None:
    async def script(run: StubRun) -> ExecResult:
        await asyncio.Event().wait()
        raise AssertionError("unreachable")

    client = client_of(StubEngine(script=script))
    await made(client)
    running = asyncio.create_task(client.post("/v1/sessions/s/exec", {"code": "x"}))
    await settle()
    assert (await call(client, "DELETE", "/v1/sessions/s")).status == 200
    answer = await running
    assert (answer.status, answer.json["code"]) == (404, "session_not_found")


@in_virtual_time
async def test_a_session_past_its_time_is_not_there() -> None:
    client = client_of(StubEngine(now=virtual_loop().time))
    await made(client, idle_s=10)
    await pass_time(9)
    await client.post("/v1/sessions/s/exec", {"code": "x"})
    await pass_time(9)
    assert (await client.get("/v1/sessions/s")).status == 200
    await pass_time(2)
    assert (await client.get("/v1/sessions/s")).status == 404


CONTENT = bytes(range(256)) * 1000


@in_virtual_time
async def test_files_go_in_and_come_out_byte_for_byte() -> None:
    client = client_of(StubEngine())
    await made(client)
    pieces = [CONTENT[start : start + 999] for start in range(0, len(CONTENT), 999)]
    written = await client.send("PUT", "/v1/sessions/s/files/dir/a.bin", pieces)
    assert written.json == {"path": "dir/a.bin", "size_bytes": len(CONTENT)}
    read = await client.get("/v1/sessions/s/files/dir/a.bin")
    assert (read.status, read.body) == (200, CONTENT)
    assert read.headers["content-type"] == "application/octet-stream"
    assert read.headers["content-disposition"] == "attachment; filename*=UTF-8''a.bin"
    listed = await client.get("/v1/sessions/s/files")
    assert listed.json == {"path": ".", "entries": [{"name": "dir", "kind": "directory", "size_bytes": 0}]}
    inside = await client.get("/v1/sessions/s/files?path=dir")
    assert inside.json["entries"] == [{"name": "a.bin", "kind": "file", "size_bytes": len(CONTENT)}]
    assert (await call(client, "DELETE", "/v1/sessions/s/files/dir")).json == {"ok": True}
    gone = await client.get("/v1/sessions/s/files/dir/a.bin")
    assert (gone.status, gone.json["code"]) == (404, "file_not_in_sandbox")


@in_virtual_time
async def test_an_empty_file_is_a_file() -> None:
    client = client_of(StubEngine())
    await made(client)
    assert (await call(client, "PUT", "/v1/sessions/s/files/empty")).json["size_bytes"] == 0
    read = await client.get("/v1/sessions/s/files/empty")
    assert (read.status, read.body, read.headers["content-length"]) == (200, b"", "0")


@in_virtual_time
async def test_head_tells_a_files_size_and_nothing_else() -> None:
    client = client_of(StubEngine())
    await made(client)
    await call(client, "PUT", "/v1/sessions/s/files/a", b"content")
    answer = client.begin("HEAD", "/v1/sessions/s/files/a", b"")
    await answer.end()
    assert (answer.answer.status, answer.answer.headers["content-length"], answer.answer.body) == (200, "7", b"")


@pytest.mark.parametrize(
    ("sent", "place"),
    [
        ("a b%20c", "/sandbox/a b c"),
        ("%C3%A9", "/sandbox/é"),
        ("a%2Fb", "/sandbox/a/b"),
        ("a%252Fb", "/sandbox/a%2Fb"),
        ("/tmp/x", "/tmp/x"),
        ("%2Ftmp/x", "/tmp/x"),
        ("//tmp//x", "/tmp/x"),
        ("a/../b", "/sandbox/b"),
        ("a%2F..%2Fb", "/sandbox/b"),
        ("100%25", "/sandbox/100%"),
    ],
)
@in_virtual_time
async def test_a_path_is_decoded_once_and_passed_on_as_it_is(sent: str, place: str) -> None:
    engine = StubEngine()
    client = client_of(engine)
    await made(client)
    assert (await call(client, "PUT", f"/v1/sessions/s/files/{sent}", b"x")).status == 200
    assert list(engine.sessions.find(SessionKey("native", OWNER, "s")).files) == [place]


@pytest.mark.parametrize("sent", ["../x", "..%2Fx", "%2e%2e/x", "/etc/passwd", "%2Fetc/passwd", "a/../../x", "a%00b"])
@in_virtual_time
async def test_a_path_that_leads_out_is_refused(sent: str) -> None:
    client = client_of(StubEngine())
    await made(client)
    for method in ("GET", "PUT", "DELETE"):
        answer = await call(client, method, f"/v1/sessions/s/files/{sent}", b"x" if method == "PUT" else b"")
        assert (answer.status, answer.json["code"]) == (404, "file_not_in_sandbox")


@in_virtual_time
async def test_a_session_may_have_any_name() -> None:
    client = client_of(StubEngine())
    name = "a/b c%é"
    assert (await client.post("/v1/sessions", {"id": name})).status == 201
    answer = await client.get("/v1/sessions/a%2Fb%20c%25%C3%A9")
    assert (answer.status, answer.json["id"]) == (200, name)


@pytest.mark.parametrize("query", ["path=a&path=b", "path=%ff"])
@in_virtual_time
async def test_a_query_that_cannot_be_meant_is_refused(query: str) -> None:
    client = client_of(StubEngine())
    await made(client)
    answer = await client.get(f"/v1/sessions/s/files?{query}")
    assert (answer.status, answer.json["field"]) == (400, "path")


@in_virtual_time
async def test_an_upload_may_be_larger_than_any_other_body_but_not_endless() -> None:
    engine = StubEngine()
    client = client_of(engine, max_body_bytes=1000, max_upload_bytes=5000)
    await made(client)
    path = "/v1/sessions/s/files/a"
    assert (await client.send("PUT", path, [b"x" * 5000])).status == 200
    assert (await client.send("PUT", path, [b"x" * 3000, b"y" * 2001, b"never read"])).status == 413
    assert (await client.send("PUT", path, [], [("content-length", "5001")])).status == 413
    files = engine.sessions.find(SessionKey("native", OWNER, "s")).files
    assert files == {"/sandbox/a": b"x" * 5000}


@in_virtual_time
async def test_an_upload_that_stalls_or_whose_client_goes_leaves_no_file() -> None:
    engine = StubEngine()
    client = client_of(engine, body_timeout_s=30.0)
    await made(client)
    stalled = await client.send("PUT", "/v1/sessions/s/files/a", [])
    assert (stalled.status, stalled.json["code"]) == (408, "body_timeout")
    gone = asyncio.Event()
    gone.set()
    assert (await client.send("PUT", "/v1/sessions/s/files/a", [], gone=gone)).status == 0
    assert engine.sessions.find(SessionKey("native", OWNER, "s")).files == {}


@in_virtual_time
async def test_a_compressed_upload_is_refused() -> None:
    client = client_of(StubEngine())
    await made(client)
    answer = await client.send("PUT", "/v1/sessions/s/files/a", [b"x"], [("content-encoding", "gzip")])
    assert answer.status == 415


@in_virtual_time
async def test_reading_stops_when_its_client_goes_away() -> None:
    engine = StubEngine()
    client = client_of(engine)
    await made(client)
    await client.send("PUT", "/v1/sessions/s/files/a", [b"x" * 5_000_000])
    answer = client.begin("GET", "/v1/sessions/s/files/a", b"")
    answer.taking.clear()
    await pass_time(1)
    answer.gone.set()
    await answer.end()
    assert len(answer.answer.body) == 0
    assert not answer.complete
    assert engine.sessions.reading == 0


@in_virtual_time
async def test_a_client_that_does_not_take_its_file_is_given_up() -> None:
    engine, start_s = StubEngine(), virtual_loop().time()
    client = client_of(engine, stall_s=30.0)
    await made(client)
    await client.send("PUT", "/v1/sessions/s/files/a", [b"x" * 5_000_000])
    answer = client.begin("GET", "/v1/sessions/s/files/a", b"")
    answer.taking.clear()
    await answer.end()
    assert virtual_loop().time() - start_s == pytest.approx(30.0, abs=1)
    assert engine.sessions.reading == 0


@pytest.mark.parametrize("change_bytes", [-1, 1])
@in_virtual_time
async def test_a_file_that_changes_while_it_is_read_does_not_look_whole(change_bytes: int) -> None:
    engine = StubEngine()
    client = client_of(engine)
    await made(client)
    await client.send("PUT", "/v1/sessions/s/files/a", [b"x" * 200_000])
    engine.sessions.lie_bytes = change_bytes
    answer = client.begin("GET", "/v1/sessions/s/files/a", b"")
    await answer.end()
    assert answer.answer.headers["content-length"] == str(200_000 + change_bytes)
    assert not answer.complete


@in_virtual_time
async def test_a_terminal_is_opened_told_listed_resized_and_closed() -> None:
    client = client_of(StubEngine(now=lambda: 1704110400.0))
    await made(client)
    opened = await client.post("/v1/sessions/s/terminals", {"argv": ["top"], "cols": 100, "env": {"TERM": "xterm"}})
    assert opened.status == 201
    assert opened.json == {
        "id": opened.json["id"],
        "session": "s",
        "argv": ["top"],
        "cols": 100,
        "rows": 24,
        "created_at": "2024-01-01T12:00:00Z",
        "exit_code": None,
    }
    place = f"/v1/sessions/s/terminals/{opened.json['id']}"
    assert (await client.get(place)).json == opened.json
    assert (await client.get("/v1/sessions/s/terminals")).json["terminals"] == [opened.json]
    resized = await call(client, "PATCH", place, b'{"cols": 10, "rows": 5}')
    assert (resized.json["cols"], resized.json["rows"]) == (10, 5)
    assert (await call(client, "DELETE", place)).json == {"ok": True}
    assert (await client.get(place)).status == 404


@in_virtual_time
async def test_a_terminal_shows_takes_and_ends() -> None:
    engine = StubEngine()
    client = client_of(engine)
    await made(client)
    name = (await client.post("/v1/sessions/s/terminals", {})).json["id"]
    terminal = engine.sessions.find_terminal(SessionKey("native", OWNER, "s"), name)
    terminal.show(b"shown before\xff")
    socket = client.connect(f"/v1/sessions/s/terminals/{name}/ws")
    assert await socket.hear() == b"shown before\xff"
    socket.tell(b"\x03")
    assert await socket.hear() == b"\x03"
    socket.tell({"type": "input", "text": "é"})
    assert await socket.hear() == "é".encode()
    socket.tell({"type": "resize", "cols": 33, "rows": 44})
    await settle()
    assert (terminal.state.cols, terminal.state.rows) == (33, 44)
    socket.tell(b"exit\n")
    assert await socket.hear() == b"exit\n"
    assert await socket.hear() == {"type": "exit", "exit_code": 0}
    assert await socket.hear() is None
    assert socket.code == 1000


@in_virtual_time
async def test_a_terminal_stays_when_its_client_goes() -> None:
    engine = StubEngine()
    client = client_of(engine)
    await made(client)
    name = (await client.post("/v1/sessions/s/terminals", {})).json["id"]
    first = client.connect(f"/v1/sessions/s/terminals/{name}/ws")
    first.tell(b"typed")
    assert await first.hear() == b"typed"
    await first.close()
    second = client.connect(f"/v1/sessions/s/terminals/{name}/ws")
    assert await second.hear() == b"typed"
    third = client.connect(f"/v1/sessions/s/terminals/{name}/ws")
    await second.task
    assert (second.code, second.reason) == (1000, "another client took its place")
    assert await third.hear() == b"typed"
    await third.close()
    assert (await client.get(f"/v1/sessions/s/terminals/{name}")).json["exit_code"] is None


@pytest.mark.parametrize("message", ["{", "x", {"type": "type"}, {"type": "resize", "cols": 0, "rows": 1}])
@in_virtual_time
async def test_a_message_that_a_terminal_cannot_read_ends_the_connection(message: Any) -> None:
    client = client_of(StubEngine())
    await made(client)
    name = (await client.post("/v1/sessions/s/terminals", {})).json["id"]
    socket = client.connect(f"/v1/sessions/s/terminals/{name}/ws")
    socket.tell(message)
    await socket.task
    assert socket.code == 1003
    assert socket.reason
    assert (await client.get(f"/v1/sessions/s/terminals/{name}")).status == 200


@in_virtual_time
async def test_a_terminal_of_a_session_that_ends_is_over() -> None:
    client = client_of(StubEngine())
    await made(client)
    name = (await client.post("/v1/sessions/s/terminals", {})).json["id"]
    socket = client.connect(f"/v1/sessions/s/terminals/{name}/ws")
    await settle()
    await call(client, "DELETE", "/v1/sessions/s")
    assert (await socket.hear())["type"] == "exit"
    await socket.task
    assert socket.code == 1000


@pytest.mark.parametrize("path", ["/v1/sessions/s/terminals/none/ws", "/v1/sessions/none/terminals/t/ws"])
@in_virtual_time
async def test_a_terminal_that_is_not_there_is_404_before_anything_is_accepted(path: str) -> None:
    client = client_of(StubEngine())
    await made(client)
    socket = client.connect(path)
    await socket.task
    assert (socket.accepted, socket.refused.status) == (False, 404)
    assert socket.refused.json["code"] == "session_not_found"


@in_virtual_time
async def test_a_client_that_does_not_watch_its_terminal_is_given_up_and_the_terminal_stays() -> None:
    engine = StubEngine()
    client = client_of(engine, stall_s=30.0)
    await made(client)
    name = (await client.post("/v1/sessions/s/terminals", {})).json["id"]
    terminal = engine.sessions.find_terminal(SessionKey("native", OWNER, "s"), name)
    socket = client.connect(f"/v1/sessions/s/terminals/{name}/ws")
    await settle()
    socket.taking.clear()
    terminal.show(b"x")
    await socket.task
    assert terminal.state.exit_code is None


@in_virtual_time
async def test_a_task_goes_on_without_its_client() -> None:
    goes_on = asyncio.Event()

    async def rule(request: Any) -> ExecResult:
        await goes_on.wait()
        return ended(files=(OutputFile("f", b"x"),))

    engine = StubEngine(rule, now=lambda: 1704110400.0)
    client = client_of(engine)
    begun = await client.post("/v1/tasks", {"code": "x"})
    assert begun.status == 202
    name = begun.json["id"]
    running = {"id": name, "status": "running", "created_at": "2024-01-01T12:00:00Z", "result": None, "error": None}
    assert begun.json == running
    await settle()
    assert (await client.get(f"/v1/tasks/{name}")).json == running
    goes_on.set()
    await settle()
    over = (await client.get(f"/v1/tasks/{name}")).json
    assert (over["status"], over["error"]) == ("ended", None)
    assert (over["result"]["stdout"], over["result"]["files"]) == ("2\n", {"f": {"base64": "eA=="}})


@pytest.mark.parametrize("error", [ForkFailed("a secret"), TierUnavailable("no")])
@in_virtual_time
async def test_a_task_that_could_not_be_run_tells_why(error: Exception) -> None:
    client = client_of(StubEngine(lambda request: error))
    name = (await client.post("/v1/tasks", {"code": "x"})).json["id"]
    await settle()
    over = await client.get(f"/v1/tasks/{name}")
    assert (over.status, over.json["status"], over.json["result"]) == (200, "failed", None)
    assert over.json["error"]["code"] == getattr(error, "code", None)
    assert b"secret" not in over.body


@in_virtual_time
async def test_a_task_is_its_callers_own() -> None:
    app = stub_app(StubEngine(), keys=KEYS)
    mine, other = Client(app, {"x-api-key": "k1"}), Client(app, {"x-api-key": "k2"})
    name = (await mine.post("/v1/tasks", {"code": "x"})).json["id"]
    answer = await other.get(f"/v1/tasks/{name}")
    assert (answer.status, answer.json["code"]) == (404, "session_not_found")


@pytest.mark.parametrize("path", ["/v1/sessions", "/v1/tasks"])
@in_virtual_time
async def test_what_takes_a_sandbox_is_charged(path: str) -> None:
    app = stub_app(StubEngine(), keys=b'["k"]', access=AccessSettings(rate_per_s=1))
    client = Client(app, {"x-api-key": "k"})
    first, second = [await client.post(path, {"code": "x"}) for _ in range(2)]
    assert first.status in (201, 202)
    assert second.status == 429
    assert (await client.get("/v1/sessions")).status == 200
    await settle()
