"""The HTTP surface: keys, rates, limits in requests, paths, injection, clients that misbehave."""

from __future__ import annotations

import base64
import gzip
import json
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.security.attempts import run_unconfined
from tests.security.conftest import SECRET
from tests.support.service import STUCK_S, Service, running_service

ALICE, BOB, SLOW = "alice-key-3fd1", "bob-key-77aa", "slow-key-0c4e"
KEYS = [
    {"name": "alice", "key": ALICE},
    {"name": "bob", "key": BOB, "ceilings": {"memory_bytes": 100 << 20, "wall_s": 5}},
    {"name": "slow", "key": SLOW, "rate_per_s": 3},
]
HELLO = {"code": "print('hello')"}


@pytest.fixture(scope="module")
def keyed(as_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with keys."""
    directory = tmp_path_factory.mktemp("keyed")
    (directory / "keys.json").write_text(json.dumps(KEYS))
    settings = f"""
        [access]
        keys_file = "{directory}/keys.json"
        [languages]
        enable = ["python", "bash"]
        [pool]
        size = 2
        sizes = {{ "python-numpy" = 0 }}
    """
    with running_service(directory, config=settings) as started:
        yield started


def post(service: Service, body: Any, path: str = "/v1/exec", **headers: str) -> httpx.Response:
    with service.client as client:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return client.post(path, content=content, headers={"content-type": "application/json", **named})


def exchange(service: Service, sent: bytes) -> bytes:
    """Send raw bytes and return all that comes back until the server closes or is silent for a second."""
    host, port = service.url.removeprefix("http://").split(":")
    received = b""
    with socket.create_connection((host, int(port)), timeout=STUCK_S) as sock:
        sock.sendall(sent)
        sock.settimeout(1.0)
        try:
            while chunk := sock.recv(65536):
                received += chunk
        except (TimeoutError, ConnectionResetError):
            pass
    return received


# --- keys ---

BAD_KEYS: dict[str, dict[str, str]] = {
    "no key": {},
    "an empty key": {"authorization": "Bearer"},
    "another scheme": {"authorization": f"Basic {base64.b64encode(ALICE.encode()).decode()}"},
    "no scheme": {"authorization": ALICE},
    "a wrong key": {"authorization": f"Bearer {ALICE}x"},
    "a prefix of a key": {"authorization": f"Bearer {ALICE[:-1]}"},
    "another case": {"authorization": f"Bearer {ALICE.upper()}"},
    "the name of a key": {"authorization": "Bearer alice"},
    "the hash of a key": {"authorization": "Bearer 0f7d2c1f"},
    "two keys in one": {"authorization": f"Bearer {ALICE}, Bearer {BOB}"},
    "a wrong key beside a right one": {"authorization": "Bearer wrong", "x-api-key": ALICE},
    "an address that is trusted elsewhere": {"x-forwarded-for": "127.0.0.1", "x-real-ip": "127.0.0.1"},
}


@pytest.mark.parametrize("name", BAD_KEYS)
def test_without_a_right_key_nothing_runs(name: str, keyed: Service) -> None:
    answer = post(keyed, HELLO, **BAD_KEYS[name])
    assert answer.status_code == 401
    assert answer.json()["code"] == "unauthenticated"
    assert "hello" not in answer.text


def test_a_key_in_the_address_is_none(keyed: Service) -> None:
    for query in (f"?api_key={ALICE}", f"?key={ALICE}", f"?authorization=Bearer+{ALICE}"):
        assert post(keyed, HELLO, path=f"/v1/exec{query}").status_code == 401


@pytest.mark.parametrize("bytes_of_key", [b"alice\0key", b"\xff\xfe", b"alice-key-3fd1\0", b"\xef\xbc\xa1"])
def test_a_key_of_strange_bytes_is_refused_without_an_error_of_ours(bytes_of_key: bytes, keyed: Service) -> None:
    body = json.dumps(HELLO).encode()
    head = b"POST /v1/exec HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\nconnection: close\r\n"
    sent = head + b"authorization: Bearer %b\r\ncontent-length: %d\r\n\r\n%b" % (bytes_of_key, len(body), body)
    status = exchange(keyed, sent).split(b" ", 2)[1]
    assert status in (b"401", b"400")
    assert "Traceback" not in keyed.log.read_text()


@pytest.mark.parametrize("headers", [{"authorization": f"Bearer {ALICE}"}, {"x_api_key": ALICE}, {"X_Api_Key": ALICE}])
def test_the_same_request_runs_with_its_key(headers: dict[str, str], keyed: Service) -> None:
    """The control of every refusal above."""
    assert post(keyed, HELLO, **headers).json()["stdout"] == "hello\n"


def test_neither_keys_nor_programs_are_in_the_log_or_the_metrics(keyed: Service) -> None:
    marker = "program-text-90ab"
    body = {"code": f"print('{marker}')", "stdin": f"{marker}-in", "env": {"MARK": f"{marker}-env"}}
    assert post(keyed, body, authorization=f"Bearer {ALICE}").status_code == 200
    post(keyed, body, authorization=f"Bearer {ALICE}-wrong")
    with keyed.client as client:
        told = client.get("/v1/metrics").text + client.get("/v1/health").text + client.get("/openapi.json").text
    for text in (keyed.log.read_text(), told):
        assert marker not in text
        assert ALICE not in text
        assert SECRET not in text
    assert "alice" in keyed.log.read_text(), "the control: the log is of these requests"


# --- rates ---


def test_a_rate_counts_items_and_no_header_changes_whom_it_counts_for(keyed: Service) -> None:
    batch = {"executions": [HELLO] * 30}
    key = {"authorization": f"Bearer {SLOW}"}
    assert post(keyed, batch, path="/v1/exec/batch", **key).status_code == 200
    spoofs: list[dict[str, str]] = [
        {}, {"x_forwarded_for": "203.0.113.9"}, {"X_Forwarded_For": "203.0.113.10, 127.0.0.1"},
        {"forwarded": "for=203.0.113.11"}, {"x_real_ip": "203.0.113.12"},
    ]  # fmt: skip
    for spoof in spoofs:
        answer = post(keyed, HELLO, **key, **spoof)
        assert answer.status_code == 429, spoof
        assert int(answer.headers["retry-after"]) >= 1
    assert post(keyed, HELLO, authorization=f"Bearer {BOB}").status_code == 200


def test_many_connections_of_one_key_share_its_rate(keyed: Service) -> None:
    statuses: list[int] = []
    key = {"authorization": f"Bearer {SLOW}"}
    threads = [
        threading.Thread(target=lambda: statuses.append(post(keyed, HELLO, **key).status_code)) for _ in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert statuses.count(429) >= 8


# --- limits ---

UNUSABLE = [
    ("wall_s", -1), ("wall_s", 0), ("wall_s", "5"), ("wall_s", True), ("wall_s", "ten"), ("wall_s", []),
    ("cpu_s", -0.5), ("cpu_s", 0), ("cpu_s", "1s"), ("memory_bytes", -1), ("memory_bytes", 0), ("memory_bytes", 1.5),
    ("memory_bytes", "512m"), ("memory_bytes", 1), ("pids", 0), ("pids", -3), ("pids", 2.5), ("pids", 2**40),
    ("open_files", 0), ("open_files", 3), ("output_bytes", 0), ("output_bytes", -1), ("disk_bytes", 0),
    ("disk_bytes", 10**30), ("disk_bytes", {}), ("cpus", 0), ("cpus", 0.001), ("cpus", "2"), ("cpus", 1e9),
]  # fmt: skip
EXCESSIVE = [("cpu_s", 1e308), ("memory_bytes", 1 << 60), ("pids", 1 << 20), ("open_files", 1 << 20)]
EXCESSIVE += [("output_bytes", 1 << 40), ("disk_bytes", 1 << 50)]


@pytest.mark.parametrize(("name", "value"), UNUSABLE)
def test_a_limit_that_is_no_limit_is_refused_by_name(name: str, value: Any, service: Service) -> None:
    answer = post(service, {**HELLO, "limits": {name: value}})
    assert answer.status_code == 400, answer.text
    assert answer.json()["field"] == f"limits.{name}"


@pytest.mark.parametrize("text", ["NaN", "Infinity", "-Infinity", "1e400", "0x10", "1_000", "١"])
def test_a_number_that_json_does_not_have_is_refused(text: str, service: Service) -> None:
    for name in ("wall_s", "cpu_s", "cpus"):
        answer = post(service, b'{"code": "print(1)", "limits": {"%b": %b}}' % (name.encode(), text.encode()))
        assert answer.status_code == 400, (text, answer.text)


@pytest.mark.parametrize(("name", "value"), EXCESSIVE)
def test_a_limit_above_the_servers_is_refused_with_the_ceiling(name: str, value: float, service: Service) -> None:
    answer = post(service, {**HELLO, "limits": {name: value}})
    assert (answer.status_code, answer.json()["code"]) == (403, "forbidden"), answer.text
    assert name in answer.json()["error"]


def test_a_wall_time_above_the_servers_is_lowered_and_told(service: Service) -> None:
    for body in ({"limits": {"wall_s": 1e308}}, {"timeout_seconds": 10**18}):
        assert post(service, {**HELLO, **body}).json()["limits"]["wall_s"] == 300.0


def test_a_limit_above_the_keys_is_refused_and_the_defaults_obey_it(keyed: Service) -> None:
    key = {"authorization": f"Bearer {BOB}"}
    assert post(keyed, {**HELLO, "limits": {"memory_bytes": 200 << 20}}, **key).status_code == 403
    limits = post(keyed, HELLO, **key).json()["limits"]
    assert (limits["memory_bytes"], limits["wall_s"]) == (100 << 20, 5.0)
    assert post(keyed, HELLO, authorization=f"Bearer {ALICE}").json()["limits"]["memory_bytes"] == 512 << 20


def test_the_limits_of_requests_that_race_stay_each_ones_own(service: Service) -> None:
    """Forty at once, no two alike: what is told and what is in force is what that request asked for."""
    items = [
        {
            "code": f"import os, resource\nprint({n}, resource.getrlimit(resource.RLIMIT_NOFILE)[0],"
            " os.statvfs('.').f_blocks * os.statvfs('.').f_frsize)",
            "limits": {"open_files": 64 + n, "disk_bytes": (4 + n) << 20, "memory_bytes": (64 + n) << 20},
        }
        for n in range(40)
    ]  # fmt: skip
    with service.client as client:
        replies = client.post("/v1/exec/batch", json={"executions": items}).json()["results"]
    for number, reply in enumerate(replies):
        assert reply["stdout"].split() == [str(number), str(64 + number), str((4 + number) << 20)], reply
        assert reply["limits"]["memory_bytes"] == (64 + number) << 20


@pytest.mark.parametrize(
    ("field", "value", "status"),
    [
        ("network", "host", 403), ("network", "filtered", 501), ("network", "../host", 400), ("session", "x", 404),
        ("isolation", "none", 400), ("isolation", "microvm", 501), ("isolation", "gvisor", 501), ("stream", "x", 400),
        ("packages", ["left-pad"], 501), ("template", "../../etc", 400), ("language", "../../bin/sh", 400),
        ("language", "python\0", 400), ("language", "", 400),
    ],
)  # fmt: skip
def test_more_than_the_server_gives_is_refused_and_never_ignored(
    field: str, value: Any, status: int, service: Service
) -> None:
    answer = post(service, {**HELLO, field: value})
    assert answer.status_code == status, answer.text
    assert "hello" not in answer.text


# --- what is sent ---


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "zstd", "gzip, identity"])
def test_a_compressed_body_is_refused_before_it_grows(encoding: str, service: Service) -> None:
    bomb = gzip.compress(b'{"code": "' + b"#" * (100 << 20) + b'"}')
    assert post(service, bomb, content_encoding=encoding).status_code == 415


def test_bodies_that_are_too_much_are_refused_and_cost_little(service: Service) -> None:
    status = Path(f"/proc/{service.process.pid}/statm")
    before = int(status.read_text().split()[1])
    assert post(service, b"x" * (11 << 20)).status_code == 413
    assert post(service, b"[" * 2_000_000).status_code == 400
    assert post(service, b'{"code":' * 100_000).status_code == 400
    assert post(service, {"code": "#" * ((1 << 20) + 1)}).status_code == 400
    assert post(service, {**HELLO, "args": ["x"] * 1_000_000}).status_code == 400
    assert post(service, {**HELLO, "files": {f"{n}": "" for n in range(100_000)}}).status_code == 400
    assert post(service, {**HELLO, "env": {f"N{n}": "" for n in range(100_000)}}).status_code == 400
    assert post(service, {**HELLO, "collect": ["*"] * 101}).status_code == 400
    assert post(service, {"executions": [HELLO] * 101}, path="/v1/exec/batch").status_code == 400
    grown = int(status.read_text().split()[1]) - before
    assert grown * os.sysconf("SC_PAGE_SIZE") < 150 << 20


@pytest.mark.parametrize(
    "body",
    [b"", b"null", b"[]", b"3", b'"x"', b"{", b"{}", b'{"code": 1}', b'{"code": "\xff"}', b'{"code": "\\ud800"}'],
)
def test_a_malformed_body_is_400_without_a_word_of_our_insides(body: bytes, service: Service) -> None:
    answer = post(service, body)
    assert answer.status_code == 400
    assert not {"Traceback", ".py", "msgspec", "sandfork/"} & set(answer.text.split())
    assert "site-packages" not in answer.text


SMUGGLED = {
    "length and chunks": b"content-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    b"GET /v1/health HTTP/1.1\r\nhost: x\r\n\r\n",
    "two lengths": b"content-length: 2\r\ncontent-length: 60\r\n\r\n{}GET /v1/health HTTP/1.1\r\nhost: x\r\n\r\n",
    "a length with a sign": b"content-length: +2\r\n\r\n{}",
    "a folded header": b"x-a: 1\r\n content-length: 2\r\n\r\n{}",
    "a space before the colon": b"content-length : 2\r\n\r\n{}GET /v1/health HTTP/1.1\r\nhost: x\r\n\r\n",
    "a bare line feed in a header": b"x-a: 1\ncontent-length: 2\r\n\r\n{}",
}


@pytest.mark.parametrize("name", SMUGGLED)
def test_a_request_hidden_in_another_is_never_answered(name: str, service: Service) -> None:
    head = b"POST /v1/exec HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
    answered = exchange(service, head + SMUGGLED[name])
    assert b"templates" not in answered, answered
    assert answered.count(b"HTTP/1.1 200") == 0


PATHS = [
    "/../../etc/passwd", "/v1/../../etc/passwd", "/%2e%2e%2f%2e%2e%2fetc%2fpasswd", "/v1/exec/%2e%2e/%2e%2e/etc/passwd",
    "/v1\\..\\..\\etc\\passwd", "/v1/exec%00.json", "//etc/passwd", "/file:///etc/passwd", "/v1/" + "a" * 20_000,
    "/v1/．．／etc/passwd", "/static/../../../etc/passwd", "/docs/../../../../etc/passwd", "/.", "/..",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
def test_no_address_leads_to_a_file(path: str, service: Service) -> None:
    sent = f"GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n".encode()
    answered = exchange(service, sent)
    assert answered.split(b" ", 2)[1] in (b"404", b"400", b"414", b"431"), answered[:200]
    assert b"root:" not in answered


def test_pages_of_other_sites_cannot_run_programs(service: Service) -> None:
    """Open mode on the loopback: the browser of whoever runs the service is not a way in, nor is DNS rebinding."""
    assert post(service, HELLO, origin="https://evil.example").status_code == 403
    assert post(service, HELLO, origin="http://evil.example", host="evil.example").status_code == 403
    assert post(service, HELLO, origin="null").status_code == 403
    assert post(service, HELLO, origin=service.url, host=service.url.removeprefix("http://")).status_code == 200


# --- words that become commands ---

WORDS = [
    "$(touch made)",
    "`touch made`",
    "a; touch made",
    "a\ntouch made",
    "-c",
    "--help",
    "| touch made",
    "*",
    "'\"\\",
    "",
]


def test_words_of_a_request_are_never_read_by_a_shell(service: Service, tmp_path: Path) -> None:
    for body in (
        {"argv": ["/usr/bin/printf", "<%s>", *WORDS[:4], *WORDS[6:]]},
        {"code": "import sys; print(*(f'<{a}>' for a in sys.argv[1:]), sep='', end='')", "args": WORDS},
        {"code": "printf '<%s>' \"$@\"", "language": "bash", "args": WORDS},
        {"code": "process.stdout.write(process.argv.slice(2).map((a) => `<${a}>`).join(''))", "language": "node",
         "args": [w for w in WORDS if w not in ("-c", "--help")]},
    ):  # fmt: skip
        reply = post(service, {**body, "collect": ["made"]}).json()
        words = body.get("args") or [*WORDS[:4], *WORDS[6:]]
        assert reply["stdout"] == "".join(f"<{word}>" for word in words), reply
        assert reply["files"] == {}
    run_unconfined(tmp_path, ["sh", "-c", f"echo {WORDS[0]}"])
    assert (tmp_path / "made").exists(), "the control: a shell obeys"


@pytest.mark.parametrize("name", ["", "A=B", "A B", "A\nB", "9A", "A-B", "LD_PRELOAD\0", "Ä", "${A}", "$(id)"])
def test_a_name_of_the_environment_that_is_none_is_refused(name: str, service: Service) -> None:
    answer = post(service, {**HELLO, "env": {name: "x"}})
    assert (answer.status_code, answer.json()["code"]) == (400, "invalid_request")


@pytest.mark.parametrize("language", ["python", "node", "bash"])
def test_hostile_variables_do_harm_only_inside(language: str, service: Service) -> None:
    hostile = {
        "LD_PRELOAD": "/sandbox/evil.so", "LD_LIBRARY_PATH": "/sandbox", "PATH": "/sandbox", "PYTHONSTARTUP": "evil.py",
        "PYTHONPATH": "/sandbox", "NODE_OPTIONS": "--require /sandbox/evil.js", "BASH_ENV": "/sandbox/evil.sh",
        "GCONV_PATH": "/sandbox", "IFS": "x", "HOME": "/proc/1/root", "TZ": "/etc/shadow", "LOCPATH": "/sandbox",
    }  # fmt: skip
    service.exec("print('x')" if language == "python" else "echo x", language, env=hostile)
    reply = service.exec("print('fine')" if language == "python" else "true", "python")
    assert reply["outcome"] == "exited"
    assert service.exec("echo fine", "bash")["stdout"] == "fine\n"


def test_a_variable_of_the_request_wins_over_the_policys(service: Service) -> None:
    """Else a program would run another `tool` than its PATH says; argv is looked up in that PATH, too."""
    files = {"tool": "#!/bin/sh\necho mine\n"}
    reply = service.exec("chmod +x tool; PATH=/sandbox; tool; printenv HOME", "bash", files=files, env={"HOME": "/x"})
    assert reply["stdout"].split()[0] == "mine"
    with service.client as client:
        body = {"argv": ["/usr/bin/printenv", "HOME", "PATH"], "env": {"HOME": "/x", "PATH": "/y"}}
        assert client.post("/v1/exec", json=body).json()["stdout"] == "/x\n/y\n"


NAMES_OF_FILES = [
    "plain", "with space", "line\nbreak", "cr\r\nlf", "-dash", "--", "ünï", "．．", "a/b/c", "~", "$HOME", "*", "#",
    "%2e%2e", "..a", "a..", "...", "nul%00", "\u202egnp.exe", "x" * 255,
]  # fmt: skip


def test_odd_names_of_files_come_back_as_they_went(service: Service) -> None:
    files = {name: f"content of {number}" for number, name in enumerate(NAMES_OF_FILES)}
    reply = service.exec("pass", files=files, collect=[name for name in NAMES_OF_FILES if name != "*"], files_as="text")
    assert reply["files"] == {name: text for name, text in files.items() if name != "*"}, reply["files_skipped"]


# --- clients ---


def processes_with(marker: str) -> list[int]:
    """Return the host's processes whose command line holds `marker`."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if marker.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


def test_a_client_that_goes_away_takes_its_program_with_it(service: Service) -> None:
    marker = "61234.5678"
    body = json.dumps({"argv": ["/bin/sleep", marker], "timeout_seconds": 100}).encode()
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as sock:
        sock.sendall(b"POST /v1/exec HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        until(lambda: bool(processes_with(marker)))
    until(lambda: not processes_with(marker))


def until(holds: Any) -> None:
    """Ask again and again, for as long as anything may take."""
    stuck = threading.Event()
    watchdog = threading.Timer(STUCK_S, stuck.set)
    watchdog.start()
    try:
        while not holds():
            assert not stuck.is_set()
    finally:
        watchdog.cancel()


def test_a_client_that_never_reads_its_answer_holds_up_nobody(service: Service) -> None:
    body = json.dumps({"code": "print('x' * 900_000)", "limits": {"output_bytes": 1 << 20}}).encode()
    host, port = service.url.removeprefix("http://").split(":")
    deaf = []
    for _ in range(20):
        sock = socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect((host, int(port)))
        sock.sendall(b"POST /v1/exec HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
        deaf.append(sock)
    assert [post(service, HELLO).status_code for _ in range(10)] == [200] * 10
    for sock in deaf:
        sock.close()


def test_connections_that_ask_nothing_keep_nobody_out(as_root: None, tmp_path: Path) -> None:
    """A stranger without a key holds more of them than the service has descriptors; each newcomer is answered."""
    settings = "[languages]\nenable = ['python']\n[pool]\nsize = 2\nsizes = {python-numpy = 0}\n"
    with running_service(tmp_path, config=settings, prefix=["prlimit", "--nofile=400:400"]) as service:
        host, port = service.url.removeprefix("http://").split(":")
        idle = [socket.create_connection((host, int(port))) for _ in range(600)]
        assert [post(service, HELLO).status_code for _ in range(8)] == [200] * 8
        held = len(os.listdir(f"/proc/{service.process.pid}/fd"))
        assert held < 300, "descriptors are left for sandboxes"
        for sock in idle:
            sock.close()


def test_answers_go_to_those_who_asked(service: Service) -> None:
    """A hundred clients at once, each with a word of its own."""
    answers: dict[int, str] = {}

    def ask(number: int) -> None:
        answers[number] = service.exec("print(input())", stdin=f"word-{number}")["stdout"]

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(100)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: f"word-{number}\n" for number in range(100)}


def test_the_service_listens_on_the_loopback_only(service: Service) -> None:
    port = int(service.url.rpartition(":")[2])
    listing = subprocess.run(["cat", "/proc/net/tcp", "/proc/net/tcp6"], capture_output=True, text=True, check=True)
    listening = [line.split()[1] for line in listing.stdout.splitlines() if f":{port:04X} " in line and " 0A " in line]
    assert listening == [f"0100007F:{port:04X}"]
