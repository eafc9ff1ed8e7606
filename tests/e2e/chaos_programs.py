"""What the clients of the chaos test send: programs that behave and misbehave, and what each one's answer must be.

`TOKEN` in a text stands for a word of the request's own: an answer that belongs to another request shows.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

Answer = dict[str, Any]
Judge = Callable[[Answer, str], bool]


@dataclass(frozen=True)
class Program:
    """A request, what its answer must be, and how many of a hundred or so are of this kind."""

    code: str
    true: Judge
    language: str = "python"
    limits: dict[str, float] = field(default_factory=dict)
    more: dict[str, Any] = field(default_factory=dict)
    weight: float = 1


def ended(outcome: str, status: int | None = None, stdout: str | None = None, stderr: str | None = "") -> Judge:
    """Return whether an answer is this one; None leaves a part open."""

    def true(answer: Answer, token: str) -> bool:
        return (
            answer["outcome"] == outcome
            and status in (None, answer["exit_code"])
            and (stdout is None or answer["stdout"] == stdout.replace("TOKEN", token))
            and stderr in (None, answer["stderr"])
        )

    return true


def failed(answer: Answer, token: str) -> bool:
    """The program ended with its own error."""
    return answer["exit_code"] == 1 and answer["stderr"].endswith(f"ValueError: {token}\n")


def bombed(answer: Answer, token: str) -> bool:
    """A fork bomb is over with its first process: by itself, or refused another; its children wrote what they could."""
    return answer["outcome"] in ("exited", "pids_limit") and answer["stdout"].endswith(f"stopped {token}\n")


def flooded(answer: Answer, token: str) -> bool:
    """Cut at exactly the limit, and all of it the program's own."""
    whole = f"{token}\n" * 600
    return answer["outcome"] == "output_limit" and answer["truncated"] is True and answer["stdout"] == whole[:4096]


FRAME = "import os, struct, sys, time\ndef frame(kind, body=b''): return struct.pack('=B3xI', kind, len(body)) + body\n"
FORGED_END = (
    FRAME + "print('TOKEN', flush=True)\nos.write(63, frame(69, struct.pack('=iIQQ', 5, 0, 0, 0)))\ntime.sleep(60)"
)
GARBAGE = FRAME + "print('TOKEN', flush=True)\nos.write(63, b'?' * 64)\ntime.sleep(60)"
BOMB = """
import os, sys, time
try:
    while True:
        if os.fork() == 0:
            time.sleep(100)
except OSError:
    print("stopped TOKEN", flush=True)
    os._exit(0)
"""
WILD_BOMB = """
import os
print("stopped TOKEN", flush=True)
while True:
    try: os.fork()
    except OSError: os._exit(1)
"""
DAEMON = """
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(1000)
    os._exit(0)
os.wait()
print("TOKEN")
"""
ECHO = "import sys\nsys.stdout.write(sys.stdin.read())"
KILL_INIT = "import os\ntry: os.kill(1, 9)\nexcept PermissionError: print('TOKEN')"
KILL_ALL = "import os\ntry: os.kill(-1, 9)\nexcept OSError: pass\nprint('TOKEN')"
FILL = """
import sys
try:
    with open('f', 'wb') as f:
        while True: f.write(b'x' * 65536)
except OSError:
    sys.exit(3)
"""
FILE = "open('out.txt', 'w').write('TOKEN')"
EAT = "b = []\nwhile True: b.append(b'x' * (1 << 20))"
CLOSE_ALL = "import os\nos.closerange(3, 256)\nprint('TOKEN', flush=True)\nos._exit(4)"
STOP = "import os, signal\nprint('TOKEN', flush=True)\nos.kill(os.getpid(), signal.SIGSTOP)"


def collected(answer: Answer, token: str) -> bool:
    """The file that the program left came with the answer."""
    content = {"base64": base64.b64encode(token.encode()).decode()}
    return answer["outcome"] == "exited" and answer["files"] == {"out.txt": content}


PROGRAMS = {
    "print": Program("print('TOKEN')", ended("exited", 0, "TOKEN\n"), weight=50),
    "echo": Program(ECHO, ended("exited", 0, "TOKEN" * 9), more={"stdin": "TOKEN" * 9}, weight=10),
    "collect": Program(FILE, collected, more={"collect": ["*.txt"]}, weight=3),
    "exit": Program("import sys; sys.exit(3)", ended("exited", 3, ""), weight=6),
    "raise": Program("raise ValueError('TOKEN')", failed, weight=6),
    "_exit": Program("import os; os.write(1, b'TOKEN'); os._exit(7)", ended("exited", 7, "TOKEN"), weight=6),
    "close everything": Program(CLOSE_ALL, ended("exited", 4, "TOKEN\n"), weight=2),
    "abort": Program("import os; os.abort()", ended("signalled", 134, ""), weight=1),
    "kill itself": Program("import os; os.kill(os.getpid(), 9)", ended("signalled", 137, ""), weight=1),
    "kill its init": Program(KILL_INIT, ended("exited", 0, "TOKEN\n"), weight=2),
    "kill everybody": Program(KILL_ALL, ended("exited", 0, "TOKEN\n"), weight=1),
    "forge the end": Program(FORGED_END, ended("exited", 5, "TOKEN\n"), weight=2),
    "write garbage": Program(GARBAGE, ended("policy_violation", None, "TOKEN\n", None), weight=1),
    "flood": Program("while True: print('TOKEN')", flooded, limits={"output_bytes": 4096}, weight=1),
    "fork bomb": Program(BOMB, bombed, limits={"pids": 12}, weight=0.5),
    "wild fork bomb": Program(WILD_BOMB, bombed, limits={"pids": 12}, weight=0.5),
    "eat memory": Program(EAT, ended("out_of_memory", None, "", None), limits={"memory_bytes": 32 << 20}, weight=0.5),
    "fill the disk": Program(FILL, ended("disk_limit", 3, ""), limits={"disk_bytes": 1 << 20}, weight=0.5),
    "spin": Program("while True: pass", ended("cpu_limit", None, "", None), limits={"cpu_s": 0.05}, weight=0.3),
    "sleep": Program(
        "import time; time.sleep(60)", ended("timed_out", None, "", None), limits={"wall_s": 0.2}, weight=1
    ),
    "stop": Program(STOP, ended("timed_out", None, "TOKEN\n", None), limits={"wall_s": 0.2}, weight=0.5),
    "daemon": Program(DAEMON, ended("exited", 0, "TOKEN\n"), weight=1),
    "bash": Program("echo TOKEN", ended("exited", 0, "TOKEN\n"), language="bash", weight=3),
    "node": Program("console.log('TOKEN')", ended("exited", 0, "TOKEN\n"), language="node", weight=0.5),
}
