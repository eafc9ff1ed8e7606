"""isol8's document against the service itself, with real sandboxes: every printed call, sessions, streams, limits."""

from __future__ import annotations

import base64
import contextlib
import json
import uuid
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from tests.support.service import STUCK_S, Service, running_service

BASES = ["", "/isol8"]
PRINTED = {
    "stdout",
    "stderr",
    "exitCode",
    "durationMs",
    "truncated",
    "executionId",
    "runtime",
    "timestamp",
    "containerId",
}
SLACK = timedelta(seconds=60)

everywhere = pytest.mark.parametrize("base", BASES, ids=["root", "prefix"])


class Client:
    """The calls of the document, with the bodies it prints."""

    def __init__(self, url: str, key: str = "my-key") -> None:
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self.http = httpx.Client(base_url=url, headers=headers, timeout=STUCK_S)
        self.socket_url = url.replace("http://", "ws://") + "/execute/ws"
        self.headers = headers

    def post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        return self.http.post(path, json=body)

    def run(
        self, code: str, runtime: str = "python", options: Any = None, session: str | None = None, **request: Any
    ) -> dict[str, Any]:
        body = {"request": {"code": code, "runtime": runtime, **request}, "options": options, "sessionId": session}
        answer = self.post("/execute", body)
        assert answer.status_code == 200, answer.text
        reply: dict[str, Any] = answer.json()
        return reply

    def stream(self, code: str, runtime: str = "python", **body: Any) -> list[tuple[str, str]]:
        request = {"request": {"code": code, "runtime": runtime}, **body}
        with self.http.stream("POST", "/execute/stream", json=request) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"] == "text/event-stream"
            events = [json.loads(line[6:]) for line in answer.iter_lines() if line.startswith("data: ")]
        return [(event["type"], event["data"]) for event in events]

    def talk(self, *messages: Any) -> tuple[list[tuple[str, str]], int]:
        """Say all over a WebSocket; return what was told, and the code it was closed with."""
        with connect(self.socket_url, additional_headers=self.headers, close_timeout=STUCK_S) as socket:
            for message in messages:
                socket.send(message if isinstance(message, str) else json.dumps(message))
            events = heard(socket)
        assert socket.protocol.close_code is not None
        return [(event["type"], event["data"]) for event in events], socket.protocol.close_code


Reach = Callable[..., Client]


def heard(socket: ClientConnection) -> list[dict[str, str]]:
    """Return all that is told until the other side closes, with whatever code."""
    events = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            events.append(json.loads(socket.recv(STUCK_S)))
    return events


@pytest.fixture
def session() -> str:
    """Return a name that no other test uses."""
    return f"session-{uuid.uuid4()}"


@pytest.fixture
def reach() -> Iterator[Reach]:
    """Return what makes clients, which are closed after the test."""
    with contextlib.ExitStack() as made:

        def make(url: str, key: str = "my-key") -> Client:
            client = Client(url, key)
            made.callback(client.http.close)
            return client

        yield make


def told(events: list[tuple[str, str]], kind: str) -> str:
    return "".join(data for each, data in events if each == kind)


@everywhere
def test_the_printed_request_has_the_printed_reply(reach: Reach, service: Service, base: str, session: str) -> None:
    reply = reach(service.url + base).run(
        "import os, sys\nprint('hello')\nopen('out.txt', 'w').write(sys.stdin.read() + os.environ['MY_VAR']"
        " + open('/sandbox/data.csv').read())",
        timeoutMs=5000,
        env={"MY_VAR": "value"},
        stdin="input data",
        files={"/sandbox/data.csv": "a,b\n1,2"},
        outputPaths=["/sandbox/out.txt", "/sandbox/missing"],
        options={
            "network": "none",
            "memoryLimit": "512m",
            "cpuLimit": 1.0,
            "timeoutMs": 30000,
            "sandboxSize": "64m",
            "tmpSize": "64m",
        },
        session=session,
    )
    assert set(reply) == {*PRINTED, "files", "resourceUsage"}
    assert (reply["stdout"], reply["stderr"], reply["exitCode"], reply["truncated"]) == ("hello\n", "", 0, False)
    assert (reply["runtime"], reply["containerId"]) == ("python", session)
    assert str(uuid.UUID(reply["executionId"])) == reply["executionId"]
    assert isinstance(reply["durationMs"], int)
    assert reply["timestamp"].endswith("Z")
    assert len(reply["timestamp"]) == len("2026-02-14T12:00:00.000Z")
    assert abs(datetime.now(UTC) - datetime.fromisoformat(reply["timestamp"])) < SLACK
    assert {path: base64.b64decode(text) for path, text in reply["files"].items()} == {
        "/sandbox/out.txt": b"input datavaluea,b\n1,2"
    }
    assert reply["resourceUsage"]["peakMemoryMB"] > 0


@everywhere
def test_the_curl_line_streams_what_it_says(reach: Reach, service: Service, base: str) -> None:
    events = reach(service.url + base).stream("for i in range(3): print(i)")
    assert told(events, "stdout") == "0\n1\n2\n"
    assert events[-1] == ("exit", "0")


@everywhere
def test_files_go_into_a_session_and_come_out_as_printed(
    reach: Reach, service: Service, base: str, session: str
) -> None:
    client = reach(service.url + base)
    upload = {"sessionId": session, "path": "/sandbox/data.csv", "content": "Y29sMSxjb2wyCjEsMg=="}
    missing = client.post("/file", upload)
    assert (missing.status_code, missing.json()) == (404, {"error": "Session not found"})
    client.run("print(1)", session=session)
    assert client.post("/file", upload).status_code == 200
    assert client.run("print(open('/sandbox/data.csv').read())", session=session)["stdout"] == "col1,col2\n1,2\n"
    client.run("open('/sandbox/output.json', 'w').write('{\"result\": 1}')", session=session)
    read = client.http.get(f"/file?sessionId={session}&path=/sandbox/output.json")
    assert (read.status_code, read.json()) == (200, {"content": "eyJyZXN1bHQiOiAxfQ=="})
    assert client.http.get(f"/file?sessionId={session}").json() == {"error": "Missing sessionId or path"}
    assert client.http.get(f"/file?sessionId={session}&path=/sandbox/no").status_code == 404
    assert client.http.get(f"/file?sessionId={session}&path=/etc/passwd").status_code == 404
    for _ in range(2):
        gone = client.http.delete(f"/session/{session}")
        assert (gone.status_code, gone.json()) == (200, {"ok": True})
    assert client.http.get(f"/file?sessionId={session}&path=/sandbox/output.json").status_code == 404


@everywhere
def test_health_is_answered(service: Service, base: str) -> None:
    answer = httpx.get(f"{service.url}{base}/health", timeout=STUCK_S)
    assert (answer.status_code, answer.json()["status"]) == (200, "ok")
    if base:
        assert set(answer.json()) == {"status", "version"}


def test_a_session_keeps_files_and_no_variables_and_ends_when_it_is_deleted(
    reach: Reach, service: Service, session: str
) -> None:
    client = reach(service.url)
    first = client.run("kept = 1; open('a', 'w').write('file')", session=session)
    second = client.run("print(open('a').read(), 'kept' in globals())", session=session)
    assert (second["stdout"], second["containerId"]) == ("file False\n", first["containerId"])
    listed = [each for each in client.http.get("/sessions").json()["sessions"] if each["id"] == session]
    assert [set(each) for each in listed] == [{"id", "isActive", "lastAccessedAt"}]
    assert listed[0]["isActive"] is False
    assert abs(datetime.now(UTC) - datetime.fromisoformat(listed[0]["lastAccessedAt"])) < SLACK
    client.http.delete(f"/session/{session}")
    assert client.run("import os; print(os.path.exists('a'))", session=session)["stdout"] == "False\n"


def test_a_session_has_one_runtime_beside_commands(reach: Reach, service: Service, session: str) -> None:
    client = reach(service.url)
    client.run("open('a', 'w').write('x')", session=session)
    answer = client.post("/execute", {"request": {"code": "1", "runtime": "node"}, "sessionId": session})
    assert answer.status_code == 409
    assert answer.json()["error"].startswith('Cannot switch runtime from "python" to "node"')
    listing = client.post("/execute", {"request": {"cmd": "cat a"}, "sessionId": session})
    assert (listing.status_code, listing.json()["stdout"]) == (200, "x")
    assert client.run("print(2)", session=session)["stdout"] == "2\n"


def test_a_session_begun_by_a_command_takes_its_runtime(reach: Reach, service: Service, session: str) -> None:
    client = reach(service.url)
    began = client.post("/execute", {"request": {"cmd": "pwd", "runtime": "python"}, "sessionId": session})
    assert (began.json()["stdout"], began.json()["runtime"]) == ("/sandbox\n", "python")
    assert client.run("print(2)", session=session)["stdout"] == "2\n"


def test_a_crash_or_a_limit_in_a_session_keeps_the_session(reach: Reach, service: Service, session: str) -> None:
    client = reach(service.url)
    client.run("open('a', 'w').write('x')", session=session)
    assert client.run("import os; os.kill(os.getpid(), 11)", session=session)["exitCode"] == 139
    late = client.run("while True: pass", session=session, timeoutMs=300)
    assert (late["exitCode"], "EXECUTION TIMED OUT" in late["stderr"]) == (137, True)
    assert client.run("print(open('a').read())", session=session)["stdout"] == "x\n"


@pytest.mark.parametrize(
    ("runtime", "code", "stdout"),
    [
        ("python", "print(input())", "in\n"),
        ("node", "process.stdin.on('data', (text) => process.stdout.write(text))", "in"),
        ("bash", "cat", "in"),
    ],
)
def test_every_runtime_reads_and_writes_in_and_out_of_a_session(
    reach: Reach, service: Service, session: str, runtime: str, code: str, stdout: str
) -> None:
    client = reach(service.url)
    for name in (None, session, session):
        reply = client.run(code, runtime, stdin="in", session=name)
        assert (reply["stdout"], reply["exitCode"]) == (stdout, 0), reply


def test_an_unknown_runtime_is_told_with_those_there_are(reach: Reach, service: Service) -> None:
    client = reach(service.url)
    listed = httpx.get(f"{service.url}/runner/api/v1/languages").json()["languages"]
    # The Runner has another name for node.
    there = sorted({"nodejs": "node"}.get(each["name"], each["name"]) for each in listed if each["installed"])
    assert {"bash", "node", "python"} <= set(there)
    for path in ("/execute", "/execute/stream"):
        answer = client.post(path, {"request": {"code": "1", "runtime": "elbonian"}})
        assert answer.status_code == 400
        assert answer.json() == {"error": f'Unknown runtime: "elbonian". Available: {", ".join(there)}'}


def test_a_program_that_fails_is_a_result(reach: Reach, service: Service) -> None:
    reply = reach(service.url).run("raise ValueError('boom')")
    assert reply["exitCode"] == 1
    assert "ValueError: boom" in reply["stderr"]


def test_a_timeout_keeps_the_output_so_far_and_ends_with_a_line(reach: Reach, service: Service) -> None:
    client = reach(service.url)
    code = "import sys, time\nprint('so far', flush=True)\nsys.stderr.write('x')\nsys.stderr.flush()\ntime.sleep(99)"
    reply = client.run(code, timeoutMs=500, options={"timeoutMs": 60_000})
    assert (reply["stdout"], reply["exitCode"], reply["truncated"]) == ("so far\n", 137, False)
    assert reply["stderr"].splitlines() == ["x", "EXECUTION TIMED OUT after 0.5s"]
    events = client.stream(code, options={"timeoutMs": 500})
    assert events[0] == ("stdout", "so far\n")
    assert [kind for kind, _ in events[-2:]] == ["error", "exit"]
    assert ("EXECUTION TIMED OUT" in events[-2][1], events[-1][1]) == (True, "137")


def test_a_run_has_its_cores_at_a_time_until_its_timeout(reach: Reach, service: Service) -> None:
    busy = "import os\nos.fork()\nwhile True: pass"
    reply = reach(service.url).run(busy, options={"cpuLimit": 0.1, "timeoutMs": 1000})
    assert (reply["exitCode"], reply["stderr"]) == (137, "EXECUTION TIMED OUT after 1s")
    # Of the clock's 1000 ms a tenth, and of what the kernel gives at a time once more.
    assert reply["resourceUsage"]["cpuPercent"] < 35


def test_memory_and_output_and_files_are_limited_as_asked(reach: Reach, service: Service) -> None:
    client = reach(service.url)
    hungry = client.run("x = 'x' * (200 << 20)", options={"memoryLimit": "64m"})
    assert hungry["exitCode"] in (1, 137)
    loud = client.run("print('x' * 100)", options={"maxOutputSize": 10})
    assert (loud["stdout"], loud["truncated"]) == ("x" * 10, True)
    full = client.run("open('a', 'w').write('x' * (2 << 20))", options={"sandboxSize": "1m"})
    assert full["exitCode"] != 0
    both = client.run(
        "for name in ('a', '/tmp/a'): open(name, 'w').write('x' * (900 << 10))\nprint('fits')",
        options={"sandboxSize": "1m", "tmpSize": "1m"},
    )
    assert both["stdout"] == "fits\n"


@pytest.mark.parametrize(
    ("request_", "options", "status"),
    [
        ({}, {"network": "host"}, 403),
        ({}, {"network": "filtered"}, 501),
        ({}, {"image": "alpine"}, 403),
        ({}, {"readonlyRootFs": False}, 403),
        ({}, {"memoryLimit": "1t"}, 403),
        ({"installPackages": ["numpy"]}, {}, 501),
        ({"codeUrl": "https://example.com/a.py"}, {}, 501),
        ({"outputPaths": ["/etc/passwd"]}, {}, 400),
    ],
)
def test_what_cannot_be_had_is_refused_and_not_ignored(
    reach: Reach, service: Service, request_: dict[str, Any], options: dict[str, Any], status: int
) -> None:
    body = {"request": {"code": "print(1)", "runtime": "python", **request_}, "options": options}
    answer = reach(service.url).post("/execute", body)
    assert (answer.status_code, set(answer.json())) == (status, {"error"})


SECRET = "s3cret-value"


@pytest.mark.parametrize(
    ("runtime", "code"),
    [
        ("python", "import os, sys\nfor c in os.environ['TOKEN'] + '\\n': sys.stdout.write(c); sys.stdout.flush()"),
        ("bash", 'printf "%s\\n" "$TOKEN"'),
        ("node", "console.log(process.env.TOKEN)"),
    ],
)
def test_secrets_are_masked_however_they_are_written(
    reach: Reach, service: Service, session: str, runtime: str, code: str
) -> None:
    client = reach(service.url)
    options = {"secrets": {"TOKEN": SECRET}}
    for name in (None, session):
        assert client.run(code, runtime, options, session=name)["stdout"] == "***\n"
    events = client.stream(code, runtime, options=options)
    assert told(events, "stdout") == "***\n"
    assert SECRET not in json.dumps(events)


def test_what_is_left_of_a_secret_at_a_cut_is_masked_too(reach: Reach, service: Service) -> None:
    client = reach(service.url)
    code = "import os; print('-' * 5 + os.environ['TOKEN'])"
    reply = client.run(code, options={"secrets": {"TOKEN": SECRET}, "maxOutputSize": 10})
    assert (reply["stdout"], reply["truncated"]) == ("-----***", True)


@pytest.mark.parametrize("runtime", ["python", "node", "bash"])
def test_a_program_starts_in_the_directory_it_names(reach: Reach, service: Service, session: str, runtime: str) -> None:
    code = {
        "python": "import os; print(os.getcwd())",
        "node": "console.log(process.cwd())",
        "bash": "pwd",
    }[runtime]
    client = reach(service.url)
    for name in (None, session):
        assert client.run(code, runtime, workdir="a/b", session=name)["stdout"] == "/sandbox/a/b\n"
    answer = client.post("/execute", {"request": {"cmd": ["pwd"], "workdir": "/sandbox/c d"}})
    assert answer.json()["stdout"] == "/sandbox/c d\n"
    assert client.post("/execute", {"request": {"cmd": "pwd", "workdir": "/etc"}}).status_code == 400


@everywhere
def test_a_run_over_a_websocket_is_told_as_a_stream_is(reach: Reach, service: Service, base: str) -> None:
    client = reach(service.url + base)
    request = {"code": "import sys; print('out'); sys.stderr.write('err'); sys.exit(3)", "runtime": "python"}
    events, code = client.talk({"type": "execute", "request": request})
    assert (told(events, "stdout"), told(events, "stderr")) == ("out\n", "err")
    assert (events[-1], code) == (("exit", "3"), 1000)
    late = {"code": "import time; time.sleep(99)", "runtime": "python", "timeoutMs": 300}
    events, code = client.talk({"type": "execute", "request": late})
    assert [kind for kind, _ in events] == ["error", "exit"]
    assert (events[-1], code) == (("exit", "137"), 1000)
    events, code = client.talk("this is not json")
    assert [kind for kind, _ in events] == ["error"]
    assert (events[0][1].startswith("Invalid JSON"), code) == (True, 1003)


def test_a_program_is_fed_and_signalled_over_a_websocket(reach: Reach, service: Service) -> None:
    client = reach(service.url)
    code = "for line in __import__('sys').stdin: print('got', line, end='', flush=True)"
    with connect(client.socket_url, additional_headers=client.headers) as socket:
        request = {"code": code, "runtime": "python"}
        socket.send(json.dumps({"type": "execute", "request": request, "keepStdin": True}))
        socket.send(json.dumps({"type": "stdin", "data": "one\n"}))
        assert json.loads(socket.recv(STUCK_S)) == {"type": "stdout", "data": "got one\n"}
        socket.send(json.dumps({"type": "stdin", "data": ""}))
        assert json.loads(socket.recv(STUCK_S)) == {"type": "exit", "data": "0"}
    with connect(client.socket_url, additional_headers=client.headers) as socket:
        request = {"code": "print('up', flush=True); input()", "runtime": "python"}
        socket.send(json.dumps({"type": "execute", "request": request, "keepStdin": True}))
        assert json.loads(socket.recv(STUCK_S)) == {"type": "stdout", "data": "up\n"}
        socket.send(json.dumps({"type": "signal", "signal": "SIGTERM"}))
        assert json.loads(socket.recv(STUCK_S)) == {"type": "exit", "data": "143"}


def test_a_program_without_further_input_has_reached_its_end(reach: Reach, service: Service) -> None:
    request = {"code": "print(repr(__import__('sys').stdin.read()))", "runtime": "python", "stdin": "all"}
    events, _ = reach(service.url).talk({"type": "execute", "request": request})
    assert told(events, "stdout") == "'all'\n"


def test_calls_in_one_session_run_one_after_another(reach: Reach, service: Service, session: str) -> None:
    client = reach(service.url)
    client.run("open('log', 'w').close()", session=session)
    code = "f = open('log', 'a', buffering=1)\nf.write('in\\n')\n__import__('time').sleep(0.2)\nf.write('out\\n')"
    message = {"type": "execute", "request": {"code": code, "runtime": "python"}, "sessionId": session}
    with contextlib.ExitStack() as opened:
        connecting = [connect(client.socket_url, additional_headers=client.headers) for _ in range(3)]
        sockets = [opened.enter_context(each) for each in connecting]
        for socket in sockets:
            socket.send(json.dumps(message))
        for socket in sockets:
            assert [event["data"] for event in heard(socket)] == ["0"]
    log = client.run("print(open('log').read())", session=session)["stdout"].split()
    assert log == ["in", "out"] * 3


def test_a_client_that_goes_away_ends_its_own_program_and_no_other(
    reach: Reach, service: Service, session: str
) -> None:
    client = reach(service.url)
    client.run("import os, time\nos.mkfifo('wait')", session=session)
    left = "(read line < wait; echo $line > heard) > /dev/null 2>&1 & echo left"
    answer = client.post("/execute", {"request": {"cmd": left}, "sessionId": session})
    assert answer.json()["stdout"] == "left\n"
    code = "import os, time\nif os.fork(): print('up', flush=True)\ntime.sleep(3600)\nopen('outlived', 'w')"
    message = {"type": "execute", "request": {"code": code, "runtime": "python"}, "sessionId": session}
    with connect(client.socket_url, additional_headers=client.headers) as socket:
        socket.send(json.dumps(message))
        assert json.loads(socket.recv(STUCK_S)) == {"type": "stdout", "data": "up\n"}
    told = client.run("open('wait', 'w').write('still here\\n')", session=session, timeoutMs=20_000)
    assert told["exitCode"] == 0
    look = "import os, time\nwhile not (os.path.exists('heard') and open('heard').read()): time.sleep(0.01)\n"
    reply = client.run(look + "print(open('heard').read())", session=session, timeoutMs=20_000)
    assert reply["stdout"] == "still here\n\n"


@pytest.fixture(scope="module")
def keyed(as_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service of this dialect alone, with two keys."""
    directory: Path = tmp_path_factory.mktemp("keyed")
    keys = directory / "api_keys.json"
    keys.write_text('["my-key", "another"]')
    keys.chmod(0o644)
    directory.chmod(0o755)
    config = f'[access]\nkeys_file = "{keys}"\n'
    with running_service(directory, "--dialect", "isol8", config=config) as started:
        yield started


def test_a_missing_key_is_401_and_a_wrong_one_403_also_for_websockets(reach: Reach, keyed: Service) -> None:
    missing = httpx.get(f"{keyed.url}/sessions", timeout=STUCK_S)
    assert (missing.status_code, missing.json()) == (401, {"error": "Missing Authorization header"})
    wrong = reach(keyed.url, "no").http.get("/sessions")
    assert (wrong.status_code, wrong.json()) == (403, {"error": "Invalid API key"})
    assert reach(keyed.url).http.get("/sessions", headers={"Authorization": "bearer my-key"}).status_code == 200
    for headers, status in (({}, 401), ({"Authorization": "Bearer no"}, 403)):
        with pytest.raises(InvalidStatus) as refused, connect(reach(keyed.url).socket_url, additional_headers=headers):
            pass
        assert refused.value.response.status_code == status
    assert httpx.get(f"{keyed.url}/health", timeout=STUCK_S).json().keys() == {"status", "version"}


def test_a_session_of_another_key_is_not_there(reach: Reach, keyed: Service, session: str) -> None:
    mine, other = reach(keyed.url), reach(keyed.url, "another")
    mine.run("open('a', 'w').write('mine')", session=session)
    assert other.http.get(f"/file?sessionId={session}&path=a").status_code == 404
    assert session not in other.http.get("/sessions").text
    assert other.http.delete(f"/session/{session}").json() == {"ok": True}
    assert mine.run("print(open('a').read())", session=session)["stdout"] == "mine\n"


def test_output_comes_as_it_is_written(reach: Reach, service: Service) -> None:
    client = reach(service.url)
    code = "import time\nprint('first', flush=True)\ntime.sleep(99)"
    body = {"request": {"code": code, "runtime": "python", "timeoutMs": 60_000}}
    # An answer that came at the end would be too late for this client.
    with client.http.stream("POST", "/execute/stream", json=body, timeout=30) as answer:
        assert next(answer.iter_lines()) == 'data: {"type":"stdout","data":"first\\n"}'
