"""`sandfork serve` from start to end, over the fake tier: what refuses to start, what is said, how it stops."""

from __future__ import annotations

import contextlib
import json
import shlex
import signal
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.support.service import STUCK_S, Service, free_port, run_command, running_service

RUNNING = "zeroboot_concurrent_forks 1.0"


@pytest.fixture
def fake_service(tmp_path: Path) -> Any:
    with running_service(tmp_path, tier="fake") as started:
        yield started


def refusal(tmp_path: Path, *options: str, config: str = "", env: dict[str, str] | None = None) -> str:
    """Start a service that must refuse; return what it said in its one line."""
    (tmp_path / "sandfork.toml").write_text(config)
    done = run_command("serve", "--tier", "fake", *options, cwd=tmp_path, env=env)
    lines = [line for line in done.stderr.decode().splitlines() if not line.startswith("{")]
    assert done.returncode == 1, lines
    assert len(lines) == 1, lines
    return lines[0]


def in_background(call: Callable[[], httpx.Response]) -> tuple[threading.Thread, list[httpx.Response]]:
    """Make a call in a thread; the list holds its answer once the thread is over."""
    answers: list[httpx.Response] = []
    thread = threading.Thread(target=lambda: answers.append(call()))
    thread.start()
    return thread, answers


def wait_until(holds: Callable[[], bool], service: Service) -> None:
    """Ask until `holds` says yes; fail when the service ends or is stuck."""
    until = time.monotonic() + STUCK_S
    while not holds():
        assert service.process.poll() is None, service.log.read_text()
        assert time.monotonic() < until


def wait_running(service: Service) -> None:
    """Return once an execution runs."""
    with service.client as client:
        wait_until(lambda: RUNNING in client.get("/v1/metrics").text, service)


def wait_logged(service: Service, text: str) -> None:
    """Return once the log says `text`."""
    wait_until(lambda: text in service.log.read_text(), service)


def test_the_printed_curl_line_works(fake_service: Service) -> None:
    line = next(line for line in fake_service.banner.splitlines() if "curl" in line)
    words = shlex.split(line)
    assert words[0] == "curl"
    body = words[words.index("-d") + 1]
    assert json.loads(body)["language"] == "python"
    answer = httpx.post(words[1], headers=dict([words[words.index("-H") + 1].split(": ")]), content=body)
    assert answer.status_code == 200
    assert set(answer.json()) > {"id", "stdout", "stderr", "exit_code", "fork_time_ms", "exec_time_ms", "total_time_ms"}


def test_with_keys_the_printed_line_has_a_place_for_one_and_none_is_401(tmp_path: Path) -> None:
    key = run_command("keys", "new", "alice", cwd=tmp_path).stdout.decode().strip()
    with running_service(tmp_path, tier="fake") as service, service.client as client:
        assert "-H 'Authorization: Bearer YOUR_KEY'" in service.banner
        body = {"code": "out hi"}
        assert client.post("/v1/exec", json=body).status_code == 401
        answer = client.post("/v1/exec", json=body, headers={"authorization": f"Bearer {key}"})
        assert answer.json()["stdout"] == "hi\n"


def test_run_with_a_url_runs_the_program_there(tmp_path: Path, fake_service: Service) -> None:
    words = ("run", "--url", fake_service.url, "-e", "args\ncat\nerr oops\nexit 5", "a", "b")
    done = run_command(*words, cwd=tmp_path, stdin=b"typed")
    assert (done.returncode, done.stdout, done.stderr) == (5, b"a b\ntyped", b"oops\n")


def test_run_sends_its_key_and_tells_when_it_is_refused(tmp_path: Path) -> None:
    key = run_command("keys", "new", "alice", cwd=tmp_path).stdout.decode().strip()
    with running_service(tmp_path, tier="fake") as service:
        env = {"SANDFORK_URL": service.url}
        without = run_command("run", "-e", "out hi", cwd=tmp_path, env=env)
        assert (without.returncode, without.stdout) == (1, b"")
        assert b"401" in without.stderr
        assert run_command("run", "-e", "out hi", cwd=tmp_path, env=env | {"SANDFORK_API_KEY": key}).stdout == b"hi\n"


def test_a_port_in_use_is_told_without_a_traceback(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        told = refusal(tmp_path, "--port", str(port))
    assert told == f"sandfork: 127.0.0.1:{port} is in use by another program: stop it, or choose another with --port"


DIALECTS = "faber, instavm, isol8, native, runner, zeroboot"


@pytest.mark.parametrize(
    ("options", "config", "told"),
    [
        (("--host", "192.0.2.1", "--open"), "", "'192.0.2.1' is no address of this machine"),
        (("--host", "no.such.host.invalid", "--open"), "", "'no.such.host.invalid' is no address of this machine"),
        ((), "[languages]\nenable = ['pyhton']", "languages.enable: no language 'pyhton': did you mean python?"),
        ((), "[pool]\nsizes = {awk = 1}", "pool.sizes: no template 'awk' on this host"),
        ((), "[server]\ntrusted_proxies = ['example.org']", "server.trusted_proxies: "),
        ((), "[access]\nkeys_file = 'none.json'", "none.json (access.keys_file, sandfork.toml) does not exist"),
        ((), "[access]\nper_minute = {perl = 1}", f"access.per_minute: there is no dialect 'perl', only {DIALECTS}"),
        ((), "[access]\nper_hour = {perl = 1}", f"access.per_hour: there is no dialect 'perl', only {DIALECTS}"),
        (("--dialect", "perl"), "", f"server.dialect: there is no dialect 'perl', only all, {DIALECTS}"),
    ],
)
def test_what_cannot_be_served_is_refused_in_one_line(
    options: tuple[str, ...], config: str, told: str, tmp_path: Path
) -> None:
    assert told in refusal(tmp_path, *options, "--port", str(free_port()), config=config)


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_network_without_keys_is_refused_unless_open(host: str, tmp_path: Path) -> None:
    told = refusal(tmp_path, "--host", host)
    assert "there are no API keys" in told
    assert "--open" in told
    with running_service(tmp_path, "--host", "0.0.0.0", "--open", tier="fake") as service:
        assert service.exec("out hi")["stdout"] == "hi\n"


@pytest.mark.parametrize("content", ["", "{}", "[]", "[1]", '["a", "a"]', "null"])
def test_a_malformed_keys_file_refuses_to_start(content: str, tmp_path: Path) -> None:
    (tmp_path / "api_keys.json").write_text(content)
    assert "api_keys.json" in refusal(tmp_path)


def test_a_keys_file_named_by_the_environment_must_be_there(tmp_path: Path) -> None:
    env = {"ZEROBOOT_API_KEYS_FILE": "/none.json"}
    assert "/none.json (access.keys_file, ZEROBOOT_API_KEYS_FILE) does not exist" in refusal(tmp_path, env=env)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_a_running_program_end_and_then_ends_the_service(
    number: signal.Signals, fake_service: Service
) -> None:
    def call() -> httpx.Response:
        return httpx.post(f"{fake_service.url}/v1/exec", json={"code": "sleep 1\nout done"}, timeout=STUCK_S)

    thread, answers = in_background(call)
    wait_running(fake_service)
    assert fake_service.stop(number) == 0
    thread.join(STUCK_S)
    assert answers[0].json()["stdout"] == "done\n"
    assert "Traceback" not in fake_service.log.read_text()


def socket_to(service: Service, path: str = "/v1/exec/ws") -> Any:
    return connect(service.url.replace("http", "ws", 1) + path, open_timeout=STUCK_S, proxy=None)


def events_of(client: ClientConnection) -> tuple[list[dict[str, Any]], int | None]:
    """Return what a WebSocket still tells, and the code it is closed with."""
    events = []
    with contextlib.suppress(ConnectionClosed):
        while True:
            events.append(json.loads(client.recv(STUCK_S)))
    return events, client.close_code


def test_a_signal_lets_what_runs_on_a_websocket_end_and_closes_every_other(as_root: None, tmp_path: Path) -> None:
    with running_service(tmp_path) as service, service.client as client:
        session = client.post("/v1/sessions", json={}).json()["id"]
        terminals = f"/v1/sessions/{session}/terminals"
        terminal = client.post(terminals, json={"argv": ["cat"]}).json()["id"]
        with (
            socket_to(service) as running,
            socket_to(service) as idle,
            socket_to(service, f"{terminals}/{terminal}/ws") as typing,
        ):
            running.send(json.dumps({"type": "start", "code": "print(input(), 'done')"}))
            assert json.loads(running.recv(STUCK_S))["type"] == "started"
            wait_running(service)
            service.process.send_signal(signal.SIGTERM)
            assert events_of(idle) == ([], 1012)
            assert events_of(typing) == ([], 1012)
            # What runs goes on: it is still fed, and ends when it has what it waits for.
            running.send(json.dumps({"type": "stdin", "data": "all\n"}))
            events, code = events_of(running)
            assert [event["text"] for event in events if event["type"] == "stdout"] == ["all done\n"]
            assert (events[-1]["type"], events[-1]["exit_code"], code) == ("result", 0, 1012)
        assert service.process.wait(STUCK_S) == 0
        assert "Traceback" not in service.log.read_text()


def test_what_runs_on_a_websocket_after_the_drain_time_is_ended_and_told_so(tmp_path: Path) -> None:
    with running_service(tmp_path, tier="fake", config="[server]\ndrain_s = 0.2\n") as service:
        with socket_to(service) as running:
            running.send(json.dumps({"type": "start", "code": "sleep 600"}))
            wait_running(service)
            service.process.send_signal(signal.SIGTERM)
            events, code = events_of(running)
            assert (events[-1]["type"], events[-1]["code"], code) == ("error", "draining", 1012)
        assert service.process.wait(STUCK_S) == 0
        assert "Traceback" not in service.log.read_text()


def test_a_second_signal_does_not_wait_and_the_client_is_told(fake_service: Service) -> None:
    def call() -> httpx.Response:
        return httpx.post(f"{fake_service.url}/v1/exec", json={"code": "sleep 600", "timeout_seconds": 300})

    thread, answers = in_background(call)
    wait_running(fake_service)
    fake_service.process.send_signal(signal.SIGTERM)
    wait_logged(fake_service, "draining")
    assert fake_service.stop() == 0
    thread.join(STUCK_S)
    assert answers[0].status_code == 503
    assert "Traceback" not in fake_service.log.read_text()


def test_after_the_drain_time_what_still_runs_is_ended_and_its_client_told(tmp_path: Path) -> None:
    with running_service(tmp_path, tier="fake", config="[server]\ndrain_s = 0.2\n") as service:

        def call() -> httpx.Response:
            return httpx.post(f"{service.url}/v1/exec", json={"code": "sleep 600", "timeout_seconds": 300})

        thread, answers = in_background(call)
        wait_running(service)
        assert service.stop() == 0
        thread.join(STUCK_S)
        assert answers[0].status_code == 503


def test_every_line_of_the_log_is_json_and_holds_no_code(fake_service: Service) -> None:
    fake_service.exec("out not-for-the-log")
    fake_service.stop()
    lines = [json.loads(line) for line in fake_service.log.read_text().splitlines()]
    assert [line["outcome"] for line in lines if line["event"] == "execution"] == ["exited"]
    assert "not-for-the-log" not in fake_service.log.read_text()


def test_at_level_warning_executions_are_not_logged(tmp_path: Path) -> None:
    with running_service(tmp_path, tier="fake", config="[server]\nlog_level = 'warning'\n") as service:
        service.exec("out hi")
        service.stop()
        assert '"execution"' not in service.log.read_text()


def test_an_endless_request_head_ends_the_connection(fake_service: Service) -> None:
    host, port = fake_service.url.removeprefix("http://").split(":")
    sent = 0
    with socket.create_connection((host, int(port)), timeout=STUCK_S) as sock:
        sock.sendall(b"GET /v1/health HTTP/1.1\r\nhost: x\r\nx-long: ")
        with contextlib.suppress(ConnectionError):
            while sent < 64 << 20:
                sock.sendall(b"a" * 4096)
                sent += 4096
    # What the kernel's socket buffers took does not reach the service.
    assert sent < 16 << 20
    assert fake_service.exec("out hi")["stdout"] == "hi\n"


def test_the_log_is_of_what_clients_ask_for(fake_service: Service) -> None:
    """What the service itself runs after the start, to know the versions of toolchains, is nobody's execution."""
    with fake_service.client as client:
        assert client.get("/runner/api/v1/languages").status_code == 200
    fake_service.exec("print(1)")
    fake_service.stop()
    lines = [json.loads(line) for line in fake_service.log.read_text().splitlines() if line.startswith("{")]
    assert [line["event"] for line in lines if line["event"] == "execution"], lines
    assert not [line for line in lines if line.get("key_id") == "sandfork"]
    assert not [line for line in lines if "is not ready" in line.get("message", "")]
