"""What a fork could carry over: randomness, memory, descriptors, settings, others' programs; and forged frames."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import time
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from tests.security.attempts import INTERPRETER, run_unconfined
from tests.security.conftest import ENVIRONMENT, SECRET
from tests.support.service import STUCK_S, Service, running_service

RUNS = 21  # 210 pairs

RANDOM = {
    "python": """
import random, os, uuid, secrets, ssl, tempfile, hashlib
print(random.random(), random.getrandbits(64), os.urandom(8).hex(), uuid.uuid4(), uuid.uuid1(), secrets.token_hex(8),
      ssl.RAND_bytes(8).hex(), tempfile.mktemp(), random.SystemRandom().random())
""",
    "numpy": """
import numpy, random
print(numpy.random.random(), numpy.random.default_rng().random(), numpy.random.RandomState().rand(), random.random(),
      numpy.random.SeedSequence().entropy, numpy.random.standard_normal())
""",
    "node": """
const crypto = require('crypto');
console.log(Math.random(), crypto.randomBytes(8).toString('hex'), crypto.randomUUID(), Math.random());
""",
    "bash": "echo $(od -An -N8 -tx8 /dev/urandom) $(cat /proc/sys/kernel/random/uuid) $RANDOM$RANDOM$RANDOM",
}

#: Forked behind the interpreter's back, as a fork server that forgets to reseed does.
FORKED_BLINDLY = """
import ctypes, os, random
libc = ctypes.CDLL(None)
random.random()
for _ in range(2):
    if libc.fork() == 0:
        os.write(1, f"{random.random()}\\n".encode())
        os._exit(0)
    os.wait()
"""


def batch(service: Service, items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    with service.client as client:
        answer = client.post("/v1/exec/batch", json={"executions": items})
    assert answer.status_code == 200, answer.text
    replies: list[dict[str, Any]] = answer.json()["results"]
    return replies


@pytest.mark.parametrize("source", RANDOM)
def test_no_two_sandboxes_draw_the_same_random_number(source: str, service: Service) -> None:
    language = "python" if source == "numpy" else source
    replies = batch(service, [{"code": RANDOM[source], "language": language}] * RUNS)
    draws = [reply["stdout"].split() for reply in replies]
    assert all(draws), replies[0]
    for one, other in combinations(draws, 2):
        assert not set(one) & set(other)


def test_a_fork_that_does_not_reseed_repeats_itself(tmp_path: Path) -> None:
    """The control of the pairs above."""
    first, second = run_unconfined(tmp_path, [INTERPRETER, "-c", FORKED_BLINDLY]).stdout.split()
    assert first == second


@pytest.fixture(scope="module")
def recycling(as_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A service that replaces its template after every second fork."""
    settings = """
        [templates]
        recycle_forks = 2
        [languages]
        enable = ["python"]
        [pool]
        size = 1
        sizes = { "python-numpy" = 0, command = 1 }
    """
    with running_service(tmp_path_factory.mktemp("recycling"), config=settings) as started:
        yield started


LAYOUT = """
import ctypes
at_random = next(int(l.split("-")[0], 16) for l in open("/proc/self/maps") if "[stack]" in l)
print(hash("salted"), id(at_random) >> 12, at_random)
"""


def test_addresses_and_the_hash_seed_change_with_the_template(recycling: Service, service: Service) -> None:
    """The known leak and its bound: forks of one template share them, and a template is replaced."""
    shared = {reply["stdout"] for reply in batch(service, [{"code": LAYOUT}] * 4)}
    assert len(shared) == 1, "forks of one template no longer share their layout: SECURITY.md says they do"
    seen: tuple[set[str], ...] = (set(), set(), set())
    deadline = time.monotonic() + STUCK_S  # a template goes on forking while it starts its successor
    while min(map(len, seen)) < 3 and time.monotonic() < deadline:
        for values, value in zip(seen, recycling.exec(LAYOUT)["stdout"].split(), strict=True):
            values.add(value)
    assert min(map(len, seen)) >= 3, seen


@pytest.mark.parametrize("language", ["bash", "node"])
def test_a_program_that_is_executed_has_a_layout_of_its_own(language: str, service: Service) -> None:
    code = {
        "bash": "grep stack /proc/self/maps",
        "node": "console.log(require('fs').readFileSync('/proc/self/maps', 'utf8').match(/.*stack.*/)[0])",
    }[language]
    assert len({reply["stdout"] for reply in batch(service, [{"code": code, "language": language}] * 5)}) == 5


# --- memory and environment ---

#: The marker comes backwards, so that the text of the program is no find.
SCAN = """
import os, re, sys
marker = sys.argv[1][::-1].encode()
found = []
with open("/proc/self/maps") as maps, open("/proc/self/mem", "rb", 0) as memory:
    for line in maps:
        area, rights, *_, = line.split()
        start, end = (int(word, 16) for word in area.split("-"))
        if "r" not in rights or "[v" in line:
            continue
        memory.seek(start)
        try:
            text = memory.read(end - start)
        except OSError:
            continue
        found += [line.split()[-1] for _ in re.finditer(re.escape(marker[:6]) + re.escape(marker[6:]), text)]
own = 4  # at most: the marker itself, its pattern, and what they were made from
print("found" if len(found) > own else "nothing", len(found))
"""


def test_the_memory_of_a_fresh_sandbox_holds_no_secret_of_the_service(service: Service, tmp_path: Path) -> None:
    assert service.exec(SCAN, args=[SECRET[::-1]])["stdout"].startswith("nothing")
    planted = {**ENVIRONMENT, **{f"PLANTED{n}": f"{SECRET}-{n}" for n in range(8)}}
    argv = [INTERPRETER, "-I", "-c", SCAN, SECRET[::-1]]
    control = subprocess.run(argv, env=planted, capture_output=True, text=True, check=True)
    assert control.stdout.startswith("found"), control


@pytest.mark.parametrize("language", ["python", "node", "bash"])
def test_no_text_of_an_earlier_program_is_in_a_later_sandbox(language: str, service: Service) -> None:
    marker = "earlier-tenant-5b1d"
    comment = {"python": "#", "node": "//", "bash": "#"}[language]
    for _ in range(4):
        code = f"{comment} {marker}\n" * 20
        service.exec(code, language, stdin=marker, env={"TENANT": marker}, args=[marker], files={"f.txt": marker})
    replies = batch(service, [{"code": SCAN, "args": [marker[::-1]]}] * 10)
    assert {reply["stdout"].split()[0] for reply in replies} == {"nothing"}, replies


@pytest.mark.parametrize("language", ["python", "node", "bash"])
def test_the_environment_is_the_policys_and_the_requests(language: str, service: Service) -> None:
    code = {
        "python": "import json, os; print(json.dumps([dict(os.environ), open('/proc/self/environ').read()]))",
        "node": "console.log(JSON.stringify([process.env, require('fs').readFileSync('/proc/self/environ', 'utf8')]))",
        "bash": 'exec python3 -c "import json, os;'
        " print(json.dumps([dict(os.environ), open('/proc/self/environ').read()]))\"",
    }[language]
    variables, initial = json.loads(service.exec(code, language, env={"MINE": "yes"})["stdout"])
    assert variables.pop("MINE") == "yes"
    for name in ("PWD", "SHLVL", "_", "OLDPWD", "LC_CTYPE"):
        variables.pop(name, None)
    assert set(variables) == {"PATH", "HOME", "USER", "LANG"}
    assert SECRET not in initial
    names = {pair.partition("=")[0] for pair in initial.split("\0") if pair}
    # LD_BIND_NOW is how the template was started, and gone from what the program itself hands on.
    assert names <= {"PATH", "HOME", "USER", "LANG", "MINE", "PWD", "SHLVL", "_", "OLDPWD", "LC_CTYPE", "LD_BIND_NOW"}


# --- what a process inherits ---

STATE = """
import json, os, resource, signal, threading
def status(key):
    return next(l.split()[1] for l in open("/proc/self/status") if l.startswith(key))
print(json.dumps({
    "blocked": status("SigBlk"), "pending": status("ShdPnd"), "ignored": status("SigIgn"), "caught": status("SigCgt"),
    "alarm": signal.getitimer(signal.ITIMER_REAL), "nice": os.getpriority(os.PRIO_PROCESS, 0),
    "scheduler": os.sched_getscheduler(0), "umask": os.umask(0), "cwd": os.getcwd(), "session": os.getsid(0),
    "group": os.getpgid(0), "pid": os.getpid(), "threads": status("Threads"), "timers": os.path.exists("/dev/tty"),
    "children": len(open(f"/proc/self/task/{os.getpid()}/children").read().split()), "groups": os.getgroups(),
    "dumpable": os.stat("/proc/self").st_uid, "tracer": status("TracerPid"),
}))
"""


def test_signals_timers_masks_and_sessions_are_as_in_a_plain_start(service: Service) -> None:
    state = json.loads(service.exec(STATE)["stdout"])
    plain = json.loads(subprocess.run([INTERPRETER, "-c", STATE], capture_output=True, check=True, text=True).stdout)
    assert state == {
        "blocked": "0" * 16, "pending": "0" * 16, "ignored": plain["ignored"], "caught": plain["caught"],
        "alarm": [0.0, 0.0], "nice": plain["nice"], "scheduler": 0, "umask": 0o22, "cwd": "/sandbox", "session": 2,
        "group": 2, "pid": 2, "threads": "1", "timers": False, "children": 0, "groups": [], "dumpable": 1000,
        "tracer": "0",
    }  # fmt: skip


SPOIL = """
import atexit, builtins, gc, os, sys, threading, warnings, json, random, resource
builtins.print = lambda *args: None
sys.path.insert(0, "/sandbox/evil"); sys.modules["json"] = None; os.environ["SPOILT"] = "1"
json.loads = None; gc.set_threshold(1); warnings.simplefilter("error"); random.seed(1)
threading.excepthook = None; atexit.register(lambda: None)
sys.setrecursionlimit(100)
os.makedirs("/sandbox/evil"); open("/sandbox/evil/json.py", "w").write("raise SystemExit('spoilt')")
for place in ("/tmp/left", "/dev/shm/left", "/sandbox/left"):
    open(place, "w").write("left")
"""
LOOK = """
import builtins, gc, os, sys, json, random
here = [p for p in ("/tmp/left", "/dev/shm/left", "/sandbox/left", "/sandbox/evil") if os.path.exists(p)]
print(here, "evil" in str(sys.path), json.loads("1"), os.environ.get("SPOILT"), gc.get_threshold()[0] > 1,
      sys.getrecursionlimit(), random.random() == random.Random(1).random())
"""


def test_nothing_one_program_changes_is_there_for_the_next(service: Service, tmp_path: Path) -> None:
    for _ in range(3):
        service.exec(SPOIL)
    replies = batch(service, [{"code": LOOK}] * 12)
    assert {reply["stdout"] for reply in replies} == {"[] False 1 None True 1000 False\n"}
    code = SPOIL.replace("/sandbox", str(tmp_path)) + "import sys; sys.stdout.write(f'{json.loads} {sys.path[0]}')"
    assert b"None" in run_unconfined(tmp_path, [INTERPRETER, "-c", code]).stdout
    run_unconfined(tmp_path, ["rm", "-f", "/tmp/left", "/dev/shm/left"])


def test_no_memory_of_a_sandbox_is_shared_for_writing(service: Service) -> None:
    code = (
        "for line in open('/proc/self/maps'):\n"
        "    if 's' in line.split()[1] and 'w' in line.split()[1]: print(line)\n"
        "import mmap; area = mmap.mmap(-1, 4096)\n"
        "print(sum('rw-s' in line for line in open('/proc/self/maps')))"
    )
    for module in ("sys", "numpy", "pandas"):
        # The one that is found is the control: the program's own.
        assert service.exec(f"import {module}\n{code}")["stdout"] == "1\n", module


def test_locks_on_files_of_the_sandbox_end_with_it(service: Service) -> None:
    code = (
        "import fcntl\n"
        "file = open('/tmp/lock', 'w'); fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB); print('locked')"
    )
    assert {reply["stdout"] for reply in batch(service, [{"code": code}] * 8)} == {"locked\n"}


def test_arrays_work_in_many_forks_without_a_hang(service: Service) -> None:
    code = "import numpy, pandas\na = numpy.ones((200, 200)); print(float((a @ a).sum()), len(pandas.DataFrame(a)))"
    replies = batch(service, [{"code": code, "limits": {"wall_s": 20}}] * 60)
    assert {reply["stdout"] for reply in replies} == {"8000000.0 200\n"}, replies


def test_threads_of_a_program_work_in_every_fork(service: Service) -> None:
    code = (
        "import threading, queue, logging\n"
        "q = queue.Queue(); ts = [threading.Thread(target=lambda: (logging.getLogger('x').debug('y'), q.put(1)))"
        " for _ in range(8)]\n"
        "[t.start() for t in ts]; [t.join() for t in ts]; print(q.qsize())"
    )
    assert {reply["stdout"] for reply in batch(service, [{"code": code}] * 20)} == {"8\n"}


# --- frames ---

CONTROL = """
import os, select, socket, struct, sys, array
FRAME = struct.Struct("=B3xI")
control = socket.socket(fileno=os.dup(63))
def frame(kind, body=b""):
    return FRAME.pack(ord(kind), len(body)) + body
def end(code, ready=0, done=0):
    return frame("E", struct.pack("=iIQQ", code, 0, ready, done))
def wait(seconds):
    select.select([], [], [], seconds)
"""
FORGED = {
    "garbage": r"control.sendall(b'\xff' * 64)",
    "READY again": "control.sendall(frame('!'))",
    "a length of 4 GiB": "control.sendall(FRAME.pack(69, 0xffffffff))",
    "END too short": "control.sendall(frame('E', b'abc'))",
    "END too long": "control.sendall(frame('E', bytes(32)))",
    "a frame of the server's": "control.sendall(frame('R', bytes(8)))",
    "STARTED twice": "control.sendall(frame('S', bytes(8)[:-1] + b'1') * 2)",
    "FAIL twice": "control.sendall(frame('X', bytes(8)) * 2)",
}


@pytest.mark.parametrize("name", FORGED)
def test_a_forged_frame_ends_the_program_that_sent_it(name: str, service: Service) -> None:
    reply = service.exec(f"{CONTROL}\nprint('before', flush=True)\n{FORGED[name]}\nwait(20)\nprint('after')")
    assert (reply["outcome"], reply["signal"]) == ("policy_violation", signal.SIGKILL), reply
    assert reply["stdout"] == "before\n"
    assert service.exec("print(1)")["stdout"] == "1\n"


def test_a_forged_end_harms_only_its_own_answer(service: Service) -> None:
    """It ends the program: the code is what it says, times stay within what the server saw, usage is the kernel's."""
    code = f"{CONTROL}\nx = bytearray(b'x') * (20 << 20)\nprint('mine', flush=True)\nwait(0.2)\n"
    reply = service.exec(code + "control.sendall(end(-5, 0, (1 << 63) - 1))\nwait(20)\nprint('later')")
    assert (reply["outcome"], reply["exit_code"], reply["stdout"]) == ("exited", 251, "mine\n")
    assert reply["exec_time_ms"] < 10_000
    assert reply["usage"]["memory_peak_bytes"] > 20 << 20


def test_a_child_may_say_the_end_but_not_outlive_it(service: Service) -> None:
    code = f"{CONTROL}\nif os.fork() == 0:\n    control.sendall(end(9))\n    wait(30)\nwait(30)"
    reply = service.exec(code, timeout_seconds=20)
    assert (reply["outcome"], reply["exit_code"]) == ("exited", 9)
    assert reply["exec_time_ms"] < 10_000


def test_a_flood_of_frames_costs_the_server_nothing(service: Service) -> None:
    for kind in ("'X', bytes(8)", "'S', bytes(8)", "'!'"):
        code = f"{CONTROL}\nwhile True: control.sendall(frame({kind}) * 100)"
        reply = service.exec(code, limits={"wall_s": 10})
        assert reply["outcome"] in ("policy_violation", "exited"), reply
        assert reply["usage"]["wall_s"] < 5


def test_a_flood_after_the_end_is_not_listened_to(service: Service) -> None:
    """The files are collected meanwhile, so that the sandbox still lives."""
    code = (
        f"{CONTROL}\nfor i in range(300): open(f'{{i}}.txt', 'w').write('x' * 1000)\n"
        "go = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    os.read(go[0], 1)\n"
        "    while True: control.sendall(frame('X', bytes(8)) * 100)\n"
        "control.sendall(end(0))\nos.write(go[1], b'x')\nwait(20)"
    )
    reply = service.exec(code, collect=["*.txt"])
    assert reply["outcome"] == "exited"
    assert len(reply["files"]) == 300


CLOSING = {
    "the control socket": "os.close(63); control.close()",
    "every descriptor above 2": "os.closerange(3, 256); control.detach()",
    "everything": "os.closerange(0, 256); control.detach()",
    "its own file in the place of the socket": "own = os.open('own', os.O_RDWR | os.O_CREAT); os.dup2(own, 63)",
}


@pytest.mark.parametrize("name", CLOSING)
def test_closing_descriptors_changes_neither_status_nor_output(name: str, service: Service) -> None:
    code = f"{CONTROL}\nprint('out', flush=True)\nprint('err', file=sys.stderr, flush=True)\n{CLOSING[name]}\n"
    reply = service.exec(f"{code}os._exit(0) if 'everything' in {name!r} else None", collect=["own"])
    assert (reply["outcome"], reply["exit_code"]) == ("exited", 0), reply
    assert (reply["stdout"], reply["stderr"]) == ("out\n", "err\n")
    assert reply["files"].get("own", {"base64": ""}) == {"base64": ""}


@pytest.mark.parametrize(
    ("attempt", "told"),
    [
        ("os.kill(1, signal.SIGKILL)", "PermissionError"),
        ("os.kill(-1, signal.SIGKILL)", "ProcessLookupError"),
        ("os.kill(os.getppid() or 1, signal.SIGSTOP)", "PermissionError"),
        ("signal.pidfd_send_signal(os.pidfd_open(1), signal.SIGKILL)", "PermissionError"),
    ],
)
def test_the_init_of_a_sandbox_cannot_be_signalled(attempt: str, told: str, service: Service) -> None:
    reply = service.exec(f"import os, signal\n{attempt}")
    assert re.search(told, reply["stderr"]), reply
    assert reply["outcome"] == "exited"


def test_a_program_that_stops_itself_is_ended_by_the_wall_clock(service: Service) -> None:
    reply = service.exec("import os, signal; os.kill(os.getpid(), signal.SIGSTOP)", limits={"wall_s": 0.5})
    assert reply["outcome"] == "timed_out"


def test_readers_of_the_pipes_do_not_hold_an_answer_back(service: Service) -> None:
    """A grandchild keeps stdout open for a minute; the answer does not wait for it."""
    code = "import os, select\nif os.fork() == 0:\n    os.setsid(); select.select([], [], [], 60)\nprint('done')"
    reply = service.exec(code)
    assert (reply["stdout"], reply["outcome"]) == ("done\n", "exited")
    assert reply["total_time_ms"] < 20_000


def test_pages_of_forks_are_not_merged_with_each_other(service: Service) -> None:
    """KSM would tell by its timing what others hold; it is off unless a process asks for it (PR_GET_MEMORY_MERGE)."""
    code = "import ctypes; print(ctypes.CDLL(None).prctl(68, 0, 0, 0, 0) == 1)"
    assert service.exec(code)["stdout"] == "False\n"
