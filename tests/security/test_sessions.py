"""Sessions: whose they are, what one can reach of another, and what a step does to those after it."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import pty
import re
import signal
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.security.attempts import INTERPRETER
from tests.security.conftest import Canary
from tests.support.remains import settles
from tests.support.service import STUCK_S, Service, running_service
from tests.support.sessions import RemoteSession, session_of, shown

ALICE, BOB = "alice-key-3fd1", "bob-key-77aa"
MIB = 1 << 20


@pytest.fixture
def session(service: Service) -> Iterator[RemoteSession]:
    with session_of(service) as made:
        yield made


@pytest.fixture
def bystander(service: Service) -> Iterator[RemoteSession]:
    """Another session, with a state of its own, which must be there afterwards."""
    with session_of(service) as made:
        made.run("mine = 'untouched'")
        yield made
        assert made.run("print(mine)")["stdout"] == "untouched\n"


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# --- whose ---


@pytest.fixture(scope="module")
def keyed(as_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service with two keys."""
    directory = tmp_path_factory.mktemp("keyed")
    (directory / "api_keys.json").write_text(json.dumps([ALICE, BOB]))
    with running_service(directory, config="[pool]\nsize = 2\nsizes = { python-numpy = 0 }\n") as started:
        yield started


def key(text: str) -> dict[str, str]:
    return {"authorization": f"Bearer {text}"}


FOREIGN: list[tuple[str, str, dict[str, Any] | None]] = [
    ("GET", "/v1/sessions/NAME", None),
    ("DELETE", "/v1/sessions/NAME", None),
    ("POST", "/v1/sessions/NAME/interrupt", None),
    ("GET", "/v1/sessions/NAME/files", None),
    ("GET", "/v1/sessions/NAME/files/own.txt", None),
    ("PUT", "/v1/sessions/NAME/files/own.txt", None),
    ("DELETE", "/v1/sessions/NAME/files/own.txt", None),
    ("GET", "/v1/sessions/NAME/terminals", None),
    ("POST", "/v1/sessions/NAME/terminals", {}),
    ("GET", "/v1/sessions/NAME/terminals/TERMINAL", None),
    ("PATCH", "/v1/sessions/NAME/terminals/TERMINAL", {"cols": 10, "rows": 10}),
    ("DELETE", "/v1/sessions/NAME/terminals/TERMINAL", None),
    ("POST", "/v1/exec", {"code": "print(open('own.txt').read())", "session": "NAME"}),
    ("POST", "/v1/exec", {"code": "print(open('own.txt').read())", "session": "NAME", "stream": True}),
    ("GET", "/instavm/v1/sessions/session/NAME", None),
    ("GET", "/isol8/file?sessionId=NAME&path=own.txt", None),
]


def answers(service: Service, owner: str, name: str, terminal: str) -> Iterator[tuple[str, int, str]]:
    """Yield every request about a session, its status and its answer without what differs anyway."""
    with service.client as client:
        for method, path, body in FOREIGN:
            url = path.replace("NAME", name).replace("TERMINAL", terminal)
            content = json.dumps(body).replace("NAME", name) if body is not None else None
            headers = {**key(owner), "content-type": "application/json"}
            answer = client.request(method, url, content=content, headers=headers)
            told = re.sub(r'"request_id":"[^"]*"', "", answer.text).replace(name, "NAME").replace(terminal, "TERMINAL")
            yield f"{method} {path} {body}", answer.status_code, told


def test_another_keys_session_looks_as_one_that_is_not_there(keyed: Service) -> None:
    with session_of(keyed, key(ALICE)) as alices:
        assert alices.ask("PUT", "/files/own.txt", content=b"alice's").status_code == 200
        terminal = alices.open_terminal("/bin/sleep", "1000")
        foreign = list(answers(keyed, BOB, alices.name, terminal))
        nobodys = list(answers(keyed, BOB, "f" * 32, "0" * 36))
        assert foreign == nobodys
        assert {status for _, status, _ in foreign} == {404}
        with keyed.client as client:
            assert client.get("/v1/sessions", headers=key(BOB)).json() == {"sessions": []}
        with pytest.raises(InvalidStatus) as refused, RemoteSession(keyed, alices.name, key(BOB)).connected(terminal):
            pass
        assert refused.value.response.status_code == 404
        # The control: to its owner the same requests are answered, and nothing was changed by the other's.
        assert alices.ask("GET", "/files/own.txt").content == b"alice's"
        assert alices.said("print(open('own.txt').read())") == "alice's\n"
        assert alices.ask("GET", f"/terminals/{terminal}").json()["exit_code"] is None
        with alices.connected(terminal):
            pass


def test_a_name_is_nobodys_but_its_owners(keyed: Service) -> None:
    """Two callers may use one name: each has a session of their own."""
    with session_of(keyed, key(ALICE), id="shared") as alices, session_of(keyed, key(BOB), id="shared") as bobs:
        alices.run("x = 'alice'; open('own.txt', 'w').write('alice')")
        assert bobs.said("import os; print('x' in globals(), os.path.exists('own.txt'))") == "False False\n"
        assert bobs.ask("DELETE").status_code == 200
        assert alices.said("print(x)") == "alice\n"


def test_names_that_are_given_cannot_be_guessed(keyed: Service) -> None:
    names = []
    with keyed.client as client:
        for path, field in (("/v1/sessions", "id"), ("/instavm/v1/sessions/session", "session_id")):
            for _ in range(24):
                told = client.post(path, json={}, headers=key(ALICE)).json()
                names.append(told[field])
                where = path.removesuffix("/session")
                client.delete(f"{where}/{told[field]}", headers=key(ALICE))
                client.post("/instavm/kill", json={"session_id": told[field]}, headers=key(ALICE))
    assert len(set(names)) == len(names) == 48
    assert all(len(name) >= 32 for name in names)
    # Of 128 random bits two that share as much as 14 hexadecimal digits at their beginning are not to be expected.
    assert not any(one[:14] == other[:14] for one, other in pairwise(sorted(names)))


def burst(service: Service, requests: list[tuple[str, str, Any]]) -> list[tuple[int, Any]]:
    """Send all requests before any answer is read."""

    async def send() -> list[tuple[int, Any]]:
        async with httpx.AsyncClient(base_url=service.url, timeout=STUCK_S, limits=httpx.Limits()) as client:
            return await asyncio.gather(*(one(client, *request) for request in requests))

    async def one(client: httpx.AsyncClient, method: str, path: str, body: Any) -> tuple[int, Any]:
        answer = await client.request(method, path, json=body)
        return answer.status_code, answer.json()

    return asyncio.run(send())


def test_requests_that_race_to_make_one_session_make_one(service: Service) -> None:
    made = burst(service, [("POST", "/v1/sessions", {"id": "raced"})] * 16)
    assert sorted(status for status, _ in made) == [201] + [409] * 15
    with session_of(service) as other:
        other.run("1")
    first = {"command": "import os; print(os.getpid(), id(os))", "session_id": "raced-too"}
    told = burst(service, [("POST", "/instavm/execute", first)] * 12)
    assert {status for status, _ in told} == {200}
    assert len({body["stdout"] for _, body in told}) == 1
    with service.client as client:
        assert client.delete("/v1/sessions/raced").status_code == 200
        assert client.post("/instavm/kill", json={"session_id": "raced-too"}).status_code == 200


def test_there_is_an_end_to_the_terminals_and_sessions_of_one_caller(service: Service, session: RemoteSession) -> None:
    """However many are asked for at once."""
    sleep = {"argv": ["/bin/sleep", "1000"]}
    opened = burst(service, [("POST", f"{session.path}/terminals", sleep)] * 30)
    assert sorted(status for status, _ in opened) == [201] * 8 + [503] * 22
    assert len(session.ask("GET", "/terminals").json()["terminals"]) == 8
    assert session.said("print('usable')") == "usable\n"
    made = burst(service, [("POST", "/v1/sessions", {})] * 60)
    names = [body["id"] for status, body in made if status == 201]
    ended = burst(service, [("DELETE", f"/v1/sessions/{name}", None) for name in names])
    assert len(names) == 39
    assert {status for status, _ in made} == {201, 503}
    assert {status for status, _ in ended} == {200}


def test_a_terminal_that_is_opened_while_its_session_ends_is_none(service: Service) -> None:
    for _ in range(5):
        with session_of(service) as session:
            opening = [("POST", f"{session.path}/terminals", {"argv": ["/bin/sleep", "1000"]})] * 4
            told = burst(service, [*opening, ("DELETE", session.path, None), *opening])
            assert {status for status, _ in told} <= {200, 201, 404}, told
            assert session.ask("GET").status_code == 404


# --- one session and another ---

SETTLE = """
import ctypes, http.server, os, socket, subprocess, threading
open("/tmp/mark", "w").write("mark"); open("/dev/shm/mark", "w").write("mark"); open("mark", "w").write("mark")
abstract = socket.socket(socket.AF_UNIX); abstract.bind("\\0mark"); abstract.listen()
listener = socket.create_server(("127.0.0.1", 8000)); listener.listen()
sleeper = subprocess.Popen(["/bin/sleep", "1000"])
libc = ctypes.CDLL(None, use_errno=True)
segment = libc.shmget(0x5a5a, 4096, 0o1666)
"""
REACH = """
import ctypes, json, os, signal, socket
libc = ctypes.CDLL(None, use_errno=True)
found = {}
for path in ("/tmp/mark", "/dev/shm/mark", "/sandbox/mark"):
    found[path] = os.path.exists(path)
def connects(family, address):
    try:
        socket.socket(family).connect(address)
    except OSError:
        return False
    return True
found["abstract"] = connects(socket.AF_UNIX, "\\0mark")
found["port"] = connects(socket.AF_INET, ("127.0.0.1", 8000))
def can_be_signalled(pid):
    try:
        os.kill(pid, 0)
    except OSError:
        return False
    return True
# 1 is the sandbox's init, which no program may signal.
found["processes"] = sum(map(can_be_signalled, range(2, 4096))) > 1
print(json.dumps(found))
"""


def test_nothing_of_one_session_can_be_reached_from_another(session: RemoteSession, bystander: RemoteSession) -> None:
    session.run(SETTLE)
    within = json.loads(session.said(REACH))
    assert all(within.values()), within  # the control
    for fresh in (False, True):
        outside = json.loads(bystander.said(REACH, fresh=fresh))
        assert not any(outside.values()), outside
    killing = "import os\nfor pid in range(4096, 1, -1):\n    try: os.kill(pid, 9)\n    except OSError: pass"
    assert bystander.run(killing)["signal"] == signal.SIGKILL, "the control: it reached itself"
    assert session.said("print(sleeper.poll())") == "None\n"
    bystander.run("mine = 'untouched'")


def test_two_sessions_listen_on_one_port_without_meeting(session: RemoteSession, bystander: RemoteSession) -> None:
    """A port that one session serves on cannot be taken by another, nor listened to."""
    listen = (
        "import socket\nserver = socket.socket()\nserver.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)\n"
        "server.bind(('0.0.0.0', 8000)); server.listen(); server.settimeout(0.2)\n"
    )
    session.run(listen)
    bystander.run(listen)
    session.run("client = socket.create_connection(('127.0.0.1', 8000)); client.sendall(b'private')")
    taken = "try: print(server.accept()[0].recv(99))\nexcept TimeoutError: print('nobody')"
    assert bystander.said(taken) == "nobody\n"
    assert session.said(taken) == "b'private'\n"


# --- terminals ---

TYPING = """
import fcntl, json, sys
def told(request):
    try:
        fcntl.ioctl(0, request, b"!" + bytes(15))
    except OSError as error:
        return error.errno
    return "done"
print("ioctls", json.dumps([told(r) for r in (0x5412, 0x541c, 0x541d, 0x5423)]), "end")
"""


def test_nothing_can_be_typed_into_a_terminal_but_by_its_client(session: RemoteSession, tmp_path: Path) -> None:
    """TIOCSTI, TIOCLINUX, TIOCCONS and TIOCSETD are refused by the filter, whatever the kernel would say."""
    assert session.ask("PUT", "/files/typing.py", content=TYPING.encode()).status_code == 200
    with session.connected(session.open_terminal("/usr/bin/python3", "typing.py")) as client:
        assert b"ioctls [1, 1, 1, 1] end" in shown(client, b"end")
    (tmp_path / "typing.py").write_text(TYPING)
    pid, master = pty.fork()
    if pid == 0:
        os.execv(INTERPRETER, [INTERPRETER, "-I", str(tmp_path / "typing.py")])
    seen = b""
    while b"end" not in seen:
        seen += os.read(master, 4096)
    os.waitpid(pid, 0)
    os.close(master)
    assert b'["done"' in seen, "the control: root may type into its own terminal"


TRACING = """
import ctypes, json, os, sys
libc = ctypes.CDLL(None, use_errno=True)
pid = int(sys.argv[1])
def told(result):
    return "done" if result >= 0 else ctypes.get_errno()
def opened(name):
    try:
        os.close(os.open(f"/proc/{pid}/{name}", os.O_RDONLY))
    except OSError as error:
        return error.errno
    return "done"
buffer = ctypes.create_string_buffer(16)
words = (ctypes.c_size_t * 2)(ctypes.addressof(buffer), 8)
results = {name: opened(name) for name in ("mem", "environ", "fd/0", "root/etc", "ns/net")}
descriptor = libc.syscall(434, pid, 0)
results["pidfd_open"] = told(descriptor)
results["pidfd_getfd"] = told(libc.syscall(438, descriptor, 0, 0))
results["process_vm_readv"] = told(libc.syscall(310, pid, ctypes.byref(words), 1, ctypes.byref(words), 1, 0))
results["ptrace"] = told(libc.ptrace(16, pid, 0, 0))
print(json.dumps(results))
"""


def test_a_terminals_shell_cannot_be_traced_by_other_processes_of_its_session(session: RemoteSession) -> None:
    with session.connected(session.open_terminal("/bin/bash", "--norc")) as client:
        client.send(b"printf 'pid=%d;\\n' $$\n")
        pid = re.search(rb"pid=(\d+);\r\n", shown(client, b";\r\n"))
        assert pid is not None
        inside = json.loads(session.said(TRACING, fresh=True, args=[pid[1].decode()]))
        assert inside.pop("pidfd_open") == "done", "the control: the process is there"
        assert set(inside.values()) <= {errno.EPERM, errno.EACCES, errno.ENOENT, errno.ESRCH}, inside
    with subprocess.Popen(["/bin/sleep", "1000"], stdin=subprocess.DEVNULL) as sleeper:
        argv = [INTERPRETER, "-c", TRACING, str(sleeper.pid)]
        outside = json.loads(subprocess.run(argv, capture_output=True, check=True).stdout)
        sleeper.kill()
    # EFAULT, for what is asked for is nothing there, says that the kernel would have read it.
    assert set(outside.values()) <= {"done", errno.EFAULT}, outside


def test_what_a_terminal_shows_is_bytes_that_nobody_obeys(session: RemoteSession) -> None:
    """Questions to a terminal are not answered by us; words of ours come as text, which a program cannot send."""
    code = (
        "import os, select, termios, tty\ntty.setraw(0)\n"
        "os.write(1, b'\\x1b[6n\\x1b[c\\x1b]11;?\\x07\\x1b[21t\\x05\\x1bP$q\\x1b\\\\')\n"
        'os.write(1, b\'{"type":"exit","exit_code":0}\\xff\\x00\')\n'
        "print(bool(select.select([0], [], [], 0.5)[0]), 'typed')"
    )
    session.ask("PUT", "/files/asks.py", content=code.encode())
    with session.connected(session.open_terminal("/usr/bin/python3", "asks.py")) as client:
        seen = shown(client, b"typed")
        assert b"False typed" in seen
        assert b'{"type":"exit","exit_code":0}\xff\x00' in seen
        messages = list(client)
        assert messages[-1] == '{"type":"exit","exit_code":0}'


def test_pages_of_other_sites_reach_no_session_and_no_terminal(session: RemoteSession) -> None:
    terminal = session.open_terminal("/bin/sleep", "1000")
    evil = {"origin": "https://evil.example"}
    for method, path in (("GET", ""), ("POST", "/terminals"), ("GET", "/files/x"), ("DELETE", "")):
        with session.service.client as client:
            assert client.request(method, session.path + path, headers=evil).status_code == 403
    with (
        pytest.raises(InvalidStatus) as refused,
        RemoteSession(session.service, session.name, evil).connected(terminal),
    ):
        pass
    assert refused.value.response.status_code == 403
    url = session.service.url.replace("http", "ws", 1)
    with pytest.raises(InvalidStatus), connect(f"{url}/v1/exec/ws", additional_headers=evil, proxy=None):
        pass
    with session.connected(terminal):
        pass  # the control


# --- frames of a lasting interpreter ---

CONTROL = """
import os, struct
def frame(kind, body=b""):
    return struct.pack("=B3xI", ord(kind), len(body)) + body
END = frame("E", struct.pack("=iIQQ", 0, 0, 0, 0))
def send(data): os.write(63, data)
kept = 1
"""
FORGED = {
    "garbage": r"send(b'\xff' * 64)",
    "READY": "send(frame('!'))",
    "a display that nobody asked for": """send(frame('D', b'{"kind":"display","data":{"text/plain":"x"}}'))""",
    "FAIL twice": "send(frame('X', bytes(8)) * 2)",
    "a length of 4 GiB": "send(struct.pack('=B3xI', 68, 0xffffffff))",
}
FORGED_DISPLAYS = {
    "no JSON": "send(frame('D', b'x'))",
    "another kind": """send(frame('D', b'{"kind":"exit","data":{}}'))""",
    "data that is no text": """send(frame('D', b'{"kind":"display","data":{"text/plain":1}}'))""",
    "half a character": r"""send(frame('D', b'{"kind":"display","data":{"text/plain":"\\ud800"}}'))""",
    "bytes": r"""send(frame('D', b'{"kind":"display","data":{"text/plain":"\xff"}}'))""",
    "depth": """send(frame('D', b'{"kind":"display","x":' + b'[' * 100000))""",
}


@pytest.mark.parametrize("name", [*FORGED, *FORGED_DISPLAYS])
def test_a_forged_frame_ends_the_interpreter_that_sent_it_and_not_its_session(
    name: str, session: RemoteSession, bystander: RemoteSession
) -> None:
    session.run("open('file', 'w').write('kept')")
    code = (FORGED | FORGED_DISPLAYS)[name]
    reply = session.run(f"{CONTROL}\n{code}\nimport select; select.select([], [], [], 20)", rich=name not in FORGED)
    assert (reply["outcome"], reply["signal"], reply["state_lost"]) == ("policy_violation", signal.SIGKILL, True), reply
    assert session.said("print('kept' in globals(), open('file').read())") == "False kept\n"


LIES = {
    "and goes on": "send(END)\nimport select; select.select([], [], [], 0.3)\nprint('late')",
    "and ends": "send(END)",
    "twice at once": "send(END * 2)",
    "by a child, later": "if os.fork() == 0:\n    import time; time.sleep(0.2); send(END); os._exit(0)",
}


@pytest.mark.parametrize("how", LIES)
def test_a_forged_end_harms_only_answers_of_its_own_session(
    how: str, session: RemoteSession, bystander: RemoteSession
) -> None:
    """The step is answered when it lies; its true end is taken for a lie, or for that of the next. Then all is over."""
    assert session.run(f"{CONTROL}\n{LIES[how]}")["exit_code"] == 0
    for _ in range(3):
        assert session.run("import select; select.select([], [], [], 0.2)")["outcome"] in ("exited", "policy_violation")
    for code in ("import os; os._exit(0)", "print('whose answer this is nobody can tell')"):
        session.run(code)
    assert session.said("print('kept' in globals())") == "False\n"
    assert session.said("print(1 + 1)") == "2\n"


BASH_END = r"printf 'E\0\0\0\x18\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0' >&15"
NODE_SENDS = "globalThis.kept = 1; require('fs').writeSync(15, Buffer.from([{}]));"
OTHER_LIES = {
    "END by bash": ("bash", f"kept=1; {BASH_END}"),
    "READY by bash": ("bash", r"kept=1; printf '!\0\0\0\0\0\0\0' >&15"),
    "garbage by bash": ("bash", "kept=1; echo garbage >&15"),
    "END by node": ("node", NODE_SENDS.format("69, 0, 0, 0, 24, 0, 0, 0," + "0, " * 24)),
    "READY by node": ("node", NODE_SENDS.format("33, 0, 0, 0, 0, 0, 0, 0")),
    "garbage by node": ("node", NODE_SENDS.format("255, " * 64)),
}
#: For each language: wait, end, and tell whether the state is there.
PLAIN = {
    "bash": ("sleep 0.2", "exit", "echo alive$kept"),
    "node": (
        "await new Promise((done) => setTimeout(done, 200))",
        "process.exit()",
        "console.log('alive' + (globalThis.kept ?? ''))",
    ),
}


@pytest.mark.parametrize("name", OTHER_LIES)
def test_any_interpreter_that_lies_harms_only_answers_of_its_own_session(
    name: str, session: RemoteSession, bystander: RemoteSession
) -> None:
    language, code = OTHER_LIES[name]
    wait, leave, tell = PLAIN[language]
    reply = session.run(code, language)
    assert reply["outcome"] == ("exited" if "END" in name else "policy_violation"), reply
    for step in (wait, wait, leave, wait):
        session.run(step, language)
    assert session.said(tell, language) == "alive\n"


CLOSING = {
    "the control socket": ("python", "import os; os.close(63)"),
    "everything above 2": ("python", "import os; os.closerange(3, 256)"),
    "everything": ("python", "import os; os.closerange(0, 256)"),
    "a pipe in its place": ("python", "import os; os.dup2(os.pipe()[1], 63)"),
    "the shell's control socket": ("bash", "exec 15>&-"),
    "node's control socket": ("node", "require('fs').closeSync(15)"),
}


@pytest.mark.parametrize("name", CLOSING)
def test_an_interpreter_that_cannot_be_told_anything_is_replaced_and_that_is_said(
    name: str, session: RemoteSession
) -> None:
    language, code = CLOSING[name]
    assert session.run(code, language, limits={"wall_s": 5})["state_lost"]
    alive = {"bash": "echo alive", "node": "console.log('alive')", "python": "print('alive')"}
    assert session.said(alive[language], language) == "alive\n"


def test_a_child_that_takes_the_orders_for_its_parent_harms_only_its_own_session(
    session: RemoteSession, bystander: RemoteSession
) -> None:
    """It waits on the control socket with its parent; what it takes, the parent never hears of."""
    taking = "import os\nif os.fork() == 0:\n    while True: os.read(63, 65536)\n"
    session.run(taking * 4)
    for _ in range(3):
        reply = session.run("print(1)", limits={"wall_s": 0.5})
        assert (reply["outcome"], reply["stdout"]) in (("exited", "1\n"), ("timed_out", "")), reply
    session.run("import os; os._exit(0)", limits={"wall_s": 0.5})
    assert session.said("print('alive')") == "alive\n"


BETWEEN = {
    "a child that floods": "import os\nif os.fork() == 0:\n    while True: os.write(1, b'y' * 65536)",
    "threads that write": "import os, threading\n"
    "for fd in (1, 2, 1, 2):\n"
    "    threading.Thread(target=lambda: [os.write(fd, b'y' * 4096) for _ in iter(int, 1)], daemon=True).start()",
    "a child that signals": "import os, signal\nparent = os.getpid()\nif os.fork() == 0:\n"
    "    while True: os.kill(parent, signal.SIGINT)",
}


@pytest.mark.parametrize("name", BETWEEN)
def test_what_runs_on_between_steps_holds_up_no_server_and_no_session(
    name: str, session: RemoteSession, bystander: RemoteSession
) -> None:
    before = resident_bytes(session.service.process.pid)
    session.run(BETWEEN[name])
    for _ in range(3):
        assert bystander.run("print(mine)")["stdout"] == "untouched\n"
        reply = session.run("print('step')", limits={"output_bytes": 300_000, "wall_s": 5})
        assert len(reply["stdout"]) <= 300_000
    for _ in range(50):  # one that is interrupted does not come to its end
        if session.run("import os; os._exit(0)", limits={"output_bytes": 300_000, "wall_s": 5})["state_lost"]:
            break
    assert session.said("print('alive')") == "alive\n"
    assert resident_bytes(session.service.process.pid) - before < 32 * MIB


GIANTS = {
    "large ones": "for _ in range(40): display({'text/plain': 'x' * (7 << 20)}, raw=True)",
    "many": "for number in range(3000): display(number)",
    "one of the largest": "display({'text/plain': 'x' * (100 << 20)}, raw=True)\nprint('shown')",
}


@pytest.mark.parametrize("name", GIANTS)
def test_what_is_shown_has_an_end(name: str, session: RemoteSession) -> None:
    before = resident_bytes(session.service.process.pid)
    reply = session.run(GIANTS[name], rich=True)
    if name == "one of the largest":
        assert (reply["stdout"], reply["displays"]) == ("shown\n", [])
    else:
        assert (reply["outcome"], reply["state_lost"]) == ("output_limit", True)
        assert sum(len(text) for shown in reply["displays"] for text in shown["data"].values()) <= 32 * MIB
    assert [each["data"]["text/plain"] for each in session.run("6 * 7", rich=True)["displays"]] == ["42"]
    assert resident_bytes(session.service.process.pid) - before < 256 * MIB


# --- limits ---

LIMITS = {"memory_bytes": 48 * MIB, "pids": 24, "disk_bytes": 4 * MIB}
BOMB = "while True:\n    try: os.fork()\n    except OSError: pass"
TAKING: dict[str, tuple[str, set[str]]] = {
    "a fork bomb": (f"import os\n{BOMB}", {"timed_out", "cpu_limit"}),
    "a deaf fork bomb": (f"import os, signal\nsignal.signal(2, signal.SIG_IGN)\n{BOMB}", {"timed_out", "cpu_limit"}),
    "memory": ("x = []\nwhile True: x.append(bytearray(b'x') * (1 << 20))", {"out_of_memory"}),
    "memory, by children": ("import os\nos.fork(); os.fork()\nx = bytearray(b'x') * (40 << 20)\nos.wait()",
                            {"out_of_memory", "exited"}),
    "output": ("while True: print('x' * 1000)", {"output_limit"}),
    "disk": ("for n in range(99): open(f'big{n}', 'wb').write(bytes(1 << 20))", {"disk_limit"}),
    "processor": ("while True:\n    try:\n        while True: pass\n    except KeyboardInterrupt: pass", {"cpu_limit"}),
    "time, deaf": ("import signal\nsignal.signal(2, signal.SIG_IGN)\nwhile True: signal.pause()", {"timed_out"}),
    "standing still": ("import os\nos.kill(os.getpid(), 19)", {"timed_out"}),
}  # fmt: skip


@pytest.mark.parametrize("what", TAKING)
def test_a_limit_ends_a_step_and_the_session_goes_on(what: str, service: Service, bystander: RemoteSession) -> None:
    code, outcomes = TAKING[what]
    with session_of(service, limits=LIMITS) as session:
        session.run("open('file', 'w').write('kept')")
        times = {"wall_s": 30, "cpu_s": 0.5} if what == "processor" else {"wall_s": 2, "cpu_s": 1.5}
        reply = session.run(code, limits={**times, "output_bytes": 100_000})
        assert reply["outcome"] in outcomes, reply
        assert reply["usage"]["memory_peak_bytes"] <= LIMITS["memory_bytes"]
        assert session.said("print(open('file').read())") == "kept\n"
        assert session.said("rm -f big*; echo shell", "bash") == "shell\n"
        assert session.said("print('fresh')", fresh=True) == "fresh\n"
        count = "import os; print(sum(name.isdigit() for name in os.listdir('/proc')))"
        assert settles(lambda: int(session.said(count)) <= 4)  # what was killed may still be dying
        with session.connected(session.open_terminal("/bin/echo", "terminal")) as client:
            shown(client, b"terminal")


def test_processes_that_stay_count_against_the_session_and_do_not_shut_it(service: Service) -> None:
    with session_of(service, limits=LIMITS) as session:
        stay = (
            "import subprocess\nkept = []\ntry:\n"
            "    while True: kept.append(subprocess.Popen(['/bin/sleep', '1000']))\n"
            "except OSError: print(len(kept))"
        )
        assert int(session.said(stay)) < 24
        assert session.said("print('fresh')", fresh=True) == "fresh\n"
        assert session.run(stay, fresh=True)["stdout"] == "0\n"
        assert session.said("for each in kept: each.kill(); each.wait()\nprint('ended')") == "ended\n"
        assert session.said("echo shell", "bash") == "shell\n"


def test_an_interpreter_that_holds_all_its_descriptors_goes_on(session: RemoteSession) -> None:
    hold = "import os\nheld = []\ntry:\n    while True: held.append(os.dup(0))\nexcept OSError: print(len(held) > 200)"
    assert session.said(hold) == "True\n"
    for _ in range(3):
        assert session.said("print(input(), len(held) > 200)", stdin="in\n") == "in True\n"
    assert session.said("for fd in held: os.close(fd)\nprint(open('/dev/null').read())") == "\n"


@pytest.mark.parametrize("path", ["file/below", "link/below", "directory"])
def test_a_file_that_cannot_be_put_costs_no_state(path: str, session: RemoteSession, canary: Canary) -> None:
    code = "import os\nkept = 1\nopen('file', 'w').close(); os.mkdir('directory')\nos.symlink(OUT, 'link')"
    session.run(f"OUT = {str(canary.path.parent)!r}\n{code}")
    answer = session.post("kept = 2", files={path: "content"})
    assert answer.status_code == 404, answer.text
    assert answer.json()["code"] == "file_not_in_sandbox"
    reply = session.run("print(kept)", files={"other": "content"})
    assert (reply["stdout"], reply["state_lost"]) == ("1\n", False)
    assert session.post("1", fresh=True, files={path: "content"}).status_code == 404
    assert session.said("print('fresh')", fresh=True) == "fresh\n"


def test_input_that_the_disk_has_no_room_for_costs_no_state(service: Service) -> None:
    with session_of(service, limits=LIMITS) as session:
        fill = "try:\n    for n in range(9): open(f'big{n}', 'wb', 0).write(bytes(1 << 20))\nexcept OSError: pass"
        session.run(f"kept = 1\n{fill}")
        assert session.post("print(input())", stdin="x" * 100_000).status_code in (404, 413)
        reply = session.run("print(kept)")
        assert (reply["stdout"], reply["state_lost"]) == ("1\n", False)
