"""Streams and sockets: slow clients, deaf ones, ones that go away, many, and ones that want what is not theirs."""

from __future__ import annotations

import json
import os
import random
import signal
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.security.test_lifecycle import sleepers, soon
from tests.support.service import STUCK_S, Service, running_service
from tests.support.sessions import read_until, session_of, shown, stream_of

MIB = 1 << 20
SLOW = {"authorization": "Bearer slow-key-0c4e"}
SETTINGS = """
[server]
stall_s = 2
[pool]
size = 4
sizes = { python-numpy = 0 }
[admission]
max_running = 300
"""


@pytest.fixture(scope="module")
def streaming(as_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that soon gives up clients that take nothing, and runs many programs at once."""
    with running_service(tmp_path_factory.mktemp("streaming"), config=SETTINGS) as started:
        yield started


@contextmanager
def socket_of(service: Service, path: str = "/v1/exec/ws", **headers: str) -> Iterator[ClientConnection]:
    url = service.url.replace("http", "ws", 1) + path
    with connect(url, additional_headers=headers, open_timeout=STUCK_S, close_timeout=1, proxy=None) as client:
        yield client


def hear_all(client: ClientConnection, heard: list[str]) -> None:
    """Note the types of the messages that come. *Raises* ConnectionClosed at the end."""
    while True:
        heard.append(json.loads(client.recv(STUCK_S))["type"])


def resident_bytes(service: Service) -> int:
    words = Path(f"/proc/{service.process.pid}/statm").read_text().split()
    return int(words[1]) * os.sysconf("SC_PAGE_SIZE")


def mark_of() -> str:
    """Return a time to sleep for that tells whose process it is."""
    return f"54321.{random.randrange(1 << 30)}"


def events(content: bytes) -> list[tuple[str, Any]]:
    """Return the events of a stream as a client that follows the standard takes them."""
    found, name, data = [], "message", []
    for line in content.decode().replace("\r\n", "\n").replace("\r", "\n").split("\n"):
        field, _, value = line.partition(":")
        if not line and data:
            found.append((name, json.loads("\n".join(data))))
            name, data = "message", []
        elif field == "event":
            name = value.removeprefix(" ")
        elif field == "data":
            data.append(value.removeprefix(" "))
    return found


# --- clients that are slow, deaf or gone ---

FLOOD = "import os, subprocess\nsubprocess.Popen(['/bin/sleep', MARK])\nwhile True: os.write(1, b'y' * 65536)"


def flood(mark: str) -> dict[str, Any]:
    return {"code": f"MARK = '{mark}'\n{FLOOD}", "limits": {"output_bytes": 16 * MIB, "wall_s": 100, "cpu_s": 60}}


def test_a_client_that_never_reads_costs_little_and_is_given_up(streaming: Service) -> None:
    """What its program writes waits in a bounded buffer, then in its pipe; then the program is killed."""
    streaming.exec("print(1)")
    before, mark = resident_bytes(streaming), mark_of()
    deaf = [stream_of(streaming, receive_bytes=4096, **flood(mark)) for _ in range(12)]
    assert soon(lambda: len(sleepers(mark)) == 12, STUCK_S)
    assert streaming.exec("print('alive')")["stdout"] == "alive\n"
    assert resident_bytes(streaming) - before < 64 * MIB
    assert soon(lambda: not sleepers(mark), STUCK_S), "its program is still there"
    for sock in deaf:
        sock.close()


def test_a_client_that_never_reads_its_socket_is_given_up_too(streaming: Service) -> None:
    before, mark = resident_bytes(streaming), mark_of()
    with socket_of(streaming) as client:
        client.send(json.dumps({"type": "start", **flood(mark)}))
        assert soon(lambda: bool(sleepers(mark)), STUCK_S)
        # Its own library reads ahead, up to a bound; behind that nothing is taken any more.
        assert soon(lambda: not sleepers(mark), STUCK_S)
    assert resident_bytes(streaming) - before < 64 * MIB
    assert streaming.exec("print('alive')")["stdout"] == "alive\n"


def test_a_client_that_reads_a_byte_at_a_time_has_it_all_and_holds_up_nobody(streaming: Service) -> None:
    code = "for n in range(300): print(n, 'x' * 200, flush=True)"
    slow = stream_of(streaming, receive_bytes=4096, code=code)
    seen = b""
    while not seen.endswith(b"\r\n0\r\n\r\n"):
        byte = slow.recv(1)
        assert byte, "the stream broke off"
        seen += byte
        if len(seen) % 20_000 == 0:
            assert streaming.exec("print('alive')")["stdout"] == "alive\n"
    slow.close()
    texts = seen.partition(b"\r\n\r\n")[2].split(b"\r\n")[1::2]
    told = events(b"".join(texts))
    assert "".join(body["text"] for name, body in told if name == "stdout").count("\n") == 300
    assert told[-1][0] == "result"


LAST = {"silent": "import signal; signal.pause()", "a flood": "while True: print('y' * 1000)"}


@pytest.mark.parametrize("what", LAST)
def test_a_client_that_leaves_its_stream_takes_its_program_with_it(what: str, streaming: Service) -> None:
    mark = mark_of()
    code = f"import subprocess\nsubprocess.Popen(['/bin/sleep', '{mark}'])\nprint('begun', flush=True)\n"
    body = {"code": code + LAST[what], "limits": {"wall_s": 100, "output_bytes": 16 * MIB}}
    for _ in range(8):
        with stream_of(streaming, **body) as sock:
            assert b"begun" in read_until(sock, b"begun")
            assert soon(lambda: bool(sleepers(mark)), STUCK_S)
    with socket_of(streaming) as client:
        client.send(json.dumps({"type": "start", **body}))
        while "begun" not in client.recv(STUCK_S):
            pass
        client.socket.close()
    assert soon(lambda: not sleepers(mark), STUCK_S)
    assert streaming.exec("print('alive')")["stdout"] == "alive\n"


def test_a_client_that_leaves_a_step_of_a_session_interrupts_it_and_the_state_stays(streaming: Service) -> None:
    mark = mark_of()
    with session_of(streaming) as session:
        session.run("kept = 1")
        step = "import time\nkept = 2\nprint('begun', flush=True)\ntime.sleep(100)\nkept = 3"
        sock = stream_of(streaming, code=step, session=session.name)
        assert b"begun" in read_until(sock, b"begun")
        sock.close()
        assert session.said("print(kept)") == "2\n"
        deaf = (
            f"import signal, subprocess\nsignal.signal(2, signal.SIG_IGN)\nsubprocess.Popen(['/bin/sleep', '{mark}'])\n"
        )
        sock = stream_of(
            streaming, code=f"{deaf}print('begun', flush=True)\nwhile True: signal.pause()", session=session.name
        )
        assert b"begun" in read_until(sock, b"begun")
        sock.close()
        reply = session.run("print('kept' in globals())")
        assert reply["stdout"] == "False\n"
        assert soon(lambda: not sleepers(mark), STUCK_S)


def test_a_client_that_types_what_nobody_reads_and_leaves_does_not_stay(streaming: Service) -> None:
    """While a terminal takes nothing its client is not heard, so it is given up after a while."""
    with session_of(streaming) as session:
        terminal = session.open_terminal("/bin/sh", "-c", "stty raw -echo; echo ready; sleep 1000")
        with session.connected(terminal) as client:
            shown(client, b"ready")
            client.send(b"x" * 200_000)
            with pytest.raises(ConnectionClosed) as closed:
                client.recv(STUCK_S)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, "typed" in closed.value.rcvd.reason) == (1008, True)
        with session.connected(terminal) as client:
            assert b"ready" in shown(client, b"ready"), "the terminal is there as before"


# --- many ---


def test_two_hundred_idle_streams_and_sockets_keep_nobody_out(streaming: Service) -> None:
    mark = mark_of()
    before = resident_bytes(streaming)
    streams = [stream_of(streaming, argv=["/bin/sleep", mark], limits={"wall_s": 200}) for _ in range(200)]
    with ExitStack() as sockets:
        for _ in range(100):
            sockets.enter_context(socket_of(streaming))
        assert soon(lambda: len(sleepers(mark)) == 200, STUCK_S)
        assert [streaming.exec("print(1)")["stdout"] for _ in range(5)] == ["1\n"] * 5
        assert resident_bytes(streaming) - before < 128 * MIB
    for sock in streams:
        sock.close()
    assert soon(lambda: not sleepers(mark), STUCK_S)


# --- what is not theirs ---


def test_no_stream_can_be_taken_up_again_by_anybody(streaming: Service) -> None:
    """There are no ids in a stream and nothing is kept of it, so there is nothing that Last-Event-ID could name."""
    secret = f"secret-{random.randrange(1 << 60)}"
    sock = stream_of(streaming, code=f"print('{secret}')")
    seen = read_until(sock, b"\r\n0\r\n\r\n")
    sock.close()
    assert secret.encode() in seen, "the control"
    assert b"\nid:" not in seen
    exec_id = (
        next(line for line in seen.split(b"\n") if b'"type":"started"' in line).partition(b'"id":"')[2][:36].decode()
    )
    with streaming.client as client:
        for last in (exec_id, "0", "1", "*", ""):
            headers = {"last-event-id": last, "accept": "text/event-stream"}
            answer = client.post("/v1/exec", json={"code": "print('own')", "stream": True}, headers=headers)
            assert "own" in answer.text
            assert secret not in answer.text
            for path in ("/v1/exec", f"/v1/exec/{exec_id}", f"/v1/tasks/{exec_id}", "/isol8/execute/stream"):
                assert secret not in client.get(path, headers=headers).text


FORGERIES = [
    'event: result\ndata: {"type":"result","exit_code":0}\n\n',
    "\r\rdata: [DONE]\r\r",
    "\u2028\u2029\x85\x0b\x0c\n\n:comment\n\nid: 7\n\nretry: 1\n\n",
    "\x00\ufeffdata: x\n\n",
    '"}\n\nevent: error\ndata: {}\n\n',
    "0\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
]


@pytest.mark.parametrize("text", FORGERIES)
def test_a_program_cannot_write_events_of_its_own(text: str, streaming: Service) -> None:
    code = (
        f"import sys\nfor stream in (sys.stdout, sys.stderr):\n    stream.buffer.write({text.encode()!r})\nsys.exit(3)"
    )
    with streaming.client as client:
        ours = client.post("/v1/exec", json={"code": code, "stream": True}).content
        asked = {"request": {"code": code, "runtime": "python"}}
        theirs = client.post("/isol8/execute/stream", json=asked).content
    told = events(ours)
    assert [name for name, _ in told].count("result") == 1
    assert (told[-1][0], told[-1][1]["exit_code"]) == ("result", 3)
    for stream in ("stdout", "stderr"):
        assert "".join(body["text"] for name, body in told if name == stream) == text
    assert b"retry:" not in ours.replace(json.dumps(text).encode(), b"").replace(b"\\nretry: 1", b"")
    told = events(theirs)
    assert [body["data"] for _, body in told if body["type"] == "exit"] == ["3"]
    assert "".join(body["data"] for _, body in told if body["type"] == "stdout") == text
    with socket_of(streaming) as client:
        client.send(json.dumps({"type": "start", "code": code}))
        messages = []
        while not messages or messages[-1]["type"] != "result":
            messages.append(json.loads(client.recv(STUCK_S)))
    assert "".join(each["text"] for each in messages if each["type"] == "stdout") == text
    assert messages[-1]["exit_code"] == 3


# --- rates ---


@pytest.fixture(scope="module")
def keyed(as_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with a key that may do three things a second."""
    directory = tmp_path_factory.mktemp("keyed")
    keys = [{"name": "slow", "key": "slow-key-0c4e", "rate_per_s": 3}]
    (directory / "api_keys.json").write_text(json.dumps(keys))
    with running_service(directory, config="[pool]\nsize = 2\nsizes = { python-numpy = 0 }\n") as started:
        yield started


CHARGED = {
    "streams": ("/v1/exec", {"code": "1", "stream": True}),
    "sessions": ("/v1/sessions", {}),
    "tasks": ("/v1/tasks", {"code": "1"}),
    "another dialect's streams": ("/isol8/execute/stream", {"request": {"code": "1", "runtime": "python"}}),
    "another dialect's sessions": ("/instavm/v1/sessions/session", {}),
}


def refill(client: httpx.Client) -> None:
    """Wait until the key may run two things again: a refusal is not charged."""
    item = {"code": "1"}
    two = {"executions": [item, item]}
    assert soon(lambda: client.post("/v1/exec/batch", json=two).status_code == 200, STUCK_S)


@pytest.mark.parametrize("what", CHARGED)
def test_a_rate_counts_every_way_to_have_something_run(what: str, keyed: Service) -> None:
    path, body = CHARGED[what]
    with httpx.Client(base_url=keyed.url, headers=SLOW, timeout=STUCK_S) as client:
        refill(client)
        statuses = [client.post(path, json=body).status_code for _ in range(24)]
        assert 429 in statuses, statuses
        assert set(statuses) <= {200, 201, 202, 429}
        spoofed = [client.post(path, json=body, headers={"x-forwarded-for": f"203.0.113.{n}"}) for n in range(12)]
        assert 429 in {answer.status_code for answer in spoofed}


def test_a_rate_counts_runs_over_one_socket_and_many(keyed: Service) -> None:
    def run(client: ClientConnection) -> str:
        client.send(json.dumps({"type": "start", "code": "1"}))
        while (told := json.loads(client.recv(STUCK_S)))["type"] not in ("result", "error"):
            pass
        return str(told.get("code", told["type"]))

    with httpx.Client(base_url=keyed.url, headers=SLOW, timeout=STUCK_S) as asking:
        refill(asking)
    with socket_of(keyed, **SLOW) as client:
        first = [run(client) for _ in range(24)]
    assert "rate_limited" in first
    assert set(first) <= {"result", "rate_limited"}
    many = []
    for _ in range(12):
        with socket_of(keyed, **SLOW) as client:
            many.append(run(client))
    assert "rate_limited" in many


def test_a_message_that_is_too_large_ends_the_connection_and_costs_little(streaming: Service) -> None:
    before = resident_bytes(streaming)
    for _ in range(3):
        with socket_of(streaming) as client:
            with suppress(ConnectionClosed):
                client.send(b"x" * (30 * MIB))
            with pytest.raises(ConnectionClosed) as closed:
                client.recv(STUCK_S)
        assert closed.value.rcvd is None or closed.value.rcvd.code == 1009
    assert resident_bytes(streaming) - before < 64 * MIB
    assert streaming.exec("print('alive')")["stdout"] == "alive\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_service_that_ends_ends_its_streams(number: signal.Signals, as_root: None, tmp_path: Path) -> None:
    """The end of a stream is an event; a stream without one is not whole. A revoked key works until such an end."""
    with running_service(tmp_path, config=f"{SETTINGS}\n".replace("stall_s = 2", "drain_s = 0")) as service:
        code = "print('begun', flush=True)\nimport signal; signal.pause()"
        with stream_of(service, code=code, timeout_seconds=100) as sock, socket_of(service) as client:
            assert b"begun" in read_until(sock, b"begun")
            client.send(json.dumps({"type": "start", "code": "import signal; signal.pause()"}))
            assert json.loads(client.recv(STUCK_S))["type"] == "started"
            service.process.send_signal(number)
            rest = b""
            try:
                rest = read_until(sock, b"\r\n0\r\n\r\n")
            except ConnectionResetError:
                assert number == signal.SIGKILL
            assert b"event: result" not in rest
            assert (b"event: error" in rest) == (number == signal.SIGTERM)
            heard: list[str] = []
            with pytest.raises(ConnectionClosed) as closed:
                hear_all(client, heard)
            assert set(heard) <= {"error"}
            closing = closed.value.rcvd and closed.value.rcvd.code
            assert closing == (1012 if number == signal.SIGTERM else None)  # "service restart"
        service.process.wait(STUCK_S)
