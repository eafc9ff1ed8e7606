"""A program in a sandbox sees what it would see in a plain run: same stdout, stderr and exit status, byte for byte.

The control is the plain interpreter, started anew on the same file in a sandbox of its own, so that everything but the
way the interpreter came to be is the same. What does not depend on the surroundings must be the same on the host, too.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from sandfork.model import Limits, Step
from tests.e2e.interpreter_programs import DIFFERENCES, PROGRAMS, SURROUNDINGS
from tests.e2e.node_programs import BASH, NODE, NODE_DIFFERENCES
from tests.support.process import Ran, Tape, Workbench, guest_packages

LIMITS = Limits(wall_s=20, pids=64)
STDIN = b"first line\nsecond \xc3\xa9\n\nlast"
ENVIRONMENT = (("GIVEN", "väl=ue"),)

#: What differs between any two plain runs: addresses of objects, names made up for temporary files, and the pid in what
#: Python 3.12 and later say of a fork among threads.
VARIES = re.compile(rb"0x[0-9a-f]{6,}|Thread 0x\w+|tmp\w{8}\b|\(pid=\d+\)")


def same_every_run(text: bytes) -> bytes:
    return VARIES.sub(b"<varies>", text)


def told(ran: Ran) -> tuple[bytes, bytes, int | None]:
    return same_every_run(ran.stdout), same_every_run(ran.stderr), ran.status


def encoded(text: str) -> bytes:
    """Latin-1 for a text that says it is, else UTF-8."""
    return text.encode("latin-1") if "latin-1" in text else text.encode("utf-8", "surrogateescape")


async def run_plain(
    workbench: Workbench,
    code: bytes,
    argv: tuple[str, ...] = ("/usr/bin/python3", "/sandbox/main.py"),
    file_name: str = "main.py",
) -> Ran:
    """Run the file with an interpreter that is started for it, in a cell of its own."""
    sandbox, tape = await workbench.fork("command"), Tape()
    step = Step(argv, file_name, code, env=ENVIRONMENT, stdin=STDIN)
    try:
        end = await sandbox.exec(step, LIMITS, tape)
    finally:
        await sandbox.close()
    return Ran(end, bytes(tape.stdout), bytes(tape.stderr))


@pytest.mark.parametrize("name", PROGRAMS)
def test_a_program_in_a_sandbox_does_what_it_does_in_a_plain_run(workbench: Workbench, name: str) -> None:
    code = encoded(PROGRAMS[name])
    plain = workbench.wait(run_plain(workbench, code))
    forked = workbench.run(code, limits=LIMITS, env=ENVIRONMENT, stdin=STDIN)
    if name in DIFFERENCES:
        assert told(forked) != told(plain), "this difference is gone: the program belongs to the others"
    else:
        assert told(forked) == told(plain)


@pytest.mark.parametrize("name", NODE)
def test_a_node_program_in_a_sandbox_does_what_it_does_in_a_plain_run(workbench: Workbench, name: str) -> None:
    code = NODE[name].encode()
    plain = workbench.wait(run_plain(workbench, code, ("/usr/bin/node", "/sandbox/main.js"), "main.js"))
    parked = workbench.run(code, "node", limits=LIMITS, env=ENVIRONMENT, stdin=STDIN)
    if name in NODE_DIFFERENCES:
        assert told(parked) != told(plain), "this difference is gone: the program belongs to the others"
    else:
        assert told(parked) == told(plain)


def test_node_finds_modules_where_its_environment_says(workbench: Workbench) -> None:
    code = b"const fs = require('fs'); fs.mkdirSync('own'); "
    code += b"fs.writeFileSync('own/mine.js', 'exports.n = 7'); console.log(require('mine').n)"
    for env, printed in (((("NODE_PATH", "/sandbox/own"),), b"7\n"), ((), b"")):
        ran = workbench.run(code, "node", limits=LIMITS, env=env)
        assert (ran.stdout, b"Cannot find module 'mine'" in ran.stderr) == (printed, not printed)


def run_on_host(argv: list[str], name: str, code: bytes, directory: Path) -> tuple[bytes, bytes, int]:
    """Run a program outside of any sandbox, in a directory that stands for the work directory."""
    (directory / name).write_bytes(code)
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/sandbox", "USER": "sandbox", "LANG": "C.UTF-8"}
    done = subprocess.run(
        [*argv, str(directory / name)], cwd=directory, env=environment | dict(ENVIRONMENT), input=STDIN,
        capture_output=True, check=False,
    )  # fmt: skip
    here = str(directory).encode()
    out, err = (same_every_run(text.replace(here, b"/sandbox")) for text in (done.stdout, done.stderr))
    return out, err, done.returncode


@pytest.mark.parametrize("name", BASH)
def test_a_bash_program_in_a_sandbox_does_what_it_does_outside(workbench: Workbench, name: str, tmp_path: Path) -> None:
    code = BASH[name].encode()
    outside = run_on_host(["/bin/bash"], "main.sh", code, tmp_path)
    inside = workbench.run(code, "command", limits=LIMITS, env=ENVIRONMENT, stdin=STDIN)
    assert told(inside) == outside


@pytest.mark.parametrize("name", [name for name in PROGRAMS if name not in SURROUNDINGS and name not in DIFFERENCES])
def test_a_program_in_a_sandbox_does_what_it_does_outside(workbench: Workbench, name: str, tmp_path: Path) -> None:
    code = encoded(PROGRAMS[name])
    outside = run_on_host(["/usr/bin/python3"], "main.py", code, tmp_path)
    inside = workbench.run(code, limits=LIMITS, env=ENVIRONMENT, stdin=STDIN)
    assert told(inside) == outside


FONTS = """
import os
from matplotlib import font_manager
print(os.listdir('/sandbox/.cache/matplotlib'), {font.fname for font in font_manager.fontManager.ttflist} ==
      {font.fname for font in font_manager.FontManager().ttflist} != set())
"""


@pytest.mark.skipif(guest_packages() is None, reason="no packages are installed beside the service")
def test_matplotlib_has_the_list_of_fonts_that_it_would_make(workbench: Workbench) -> None:
    ran = workbench.run(FONTS, limits=LIMITS)
    assert told(ran) == (b"[] True\n", b"", 0)
