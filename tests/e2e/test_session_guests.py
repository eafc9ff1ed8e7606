"""The lasting interpreters, driven over ctl as a tier drives them: what stays, what an interrupt does, what is shown.

No tier and no root: nothing is confined here. What reaches a caller is shown by the tests of the tier.
"""

from __future__ import annotations

import base64
import json
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.guests import BashGuest, Guest, NodeGuest, PythonGuest
from tests.support.process import guest_packages

PNG = b"\x89PNG\r\n\x1a\n"
GO = b"go\n"
STOPPED = 130

#: For each interpreter, the same small programs.
KINDS = ("python", "node", "bash")
SET = {"python": "x = 41", "node": "let x = 41", "bash": "x=41"}
ADD = {"python": "print(x + 1)", "node": "console.log(x + 1)", "bash": "echo $((x + 1))"}
BUSY = {
    "python": "print('go', flush=True)\nwhile True: pass",
    "node": "console.log('go'); while (true) {}",
    "bash": "echo go; while :; do :; done",
}
WAITING = {
    "python": "import time\nprint('go', flush=True)\ntime.sleep(1000)\nprint('no')",
    "node": "setTimeout(() => console.log('go'), 20); await new Promise(() => setTimeout(() => {}, 1e6))",
    "bash": "bash -c 'echo go; exec sleep 1000'; echo no",
}
FAILING = {"python": "1/0", "node": "throw new Error('bad')", "bash": "no_such_command"}
WRONG = {"python": "print(1)\nif:\n", "node": "let 1", "bash": "if then"}
READ = {
    "python": "import sys; print(repr(sys.stdin.read()))",
    "node": "console.log(JSON.stringify(require('fs').readFileSync(0, 'utf8')))",
    "bash": "cat",
}
MANY = {
    "python": "print('x' * 3_000_000)",
    "node": "console.log('x'.repeat(3000000))",
    "bash": "head -c 3000000 /dev/zero | tr '\\0' x; echo",
}
UNICODE = {"python": "print('é€𝄞')", "node": "console.log('é€𝄞')", "bash": "echo 'é€𝄞'"}
SPINNING = """import asyncio
def spin():
    print('go', flush=True)
    while True: pass
asyncio.get_running_loop().call_soon(spin)
await asyncio.sleep(1000)
"""
EXITS = {"python": "import os; os._exit(3)", "node": "process.exit(3)", "bash": "exit 3"}


def start(kind: str, work: Path) -> Guest:
    guest = {"python": PythonGuest, "node": NodeGuest, "bash": BashGuest}[kind](work)
    guest.until_parked()
    return guest


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def guest(kind: str, tmp_path: Path) -> Iterator[Guest]:
    started = start(kind, tmp_path)
    yield started
    started.close()


@pytest.fixture
def python(tmp_path: Path) -> Iterator[Guest]:
    started = start("python", tmp_path)
    yield started
    started.close()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Guest]:
    started = start("node", tmp_path)
    yield started
    started.close()


@pytest.fixture
def bash(tmp_path: Path) -> Iterator[Guest]:
    started = start("bash", tmp_path)
    yield started
    started.close()


# --- what all have in common


def test_what_a_step_sets_the_next_one_has(guest: Guest, kind: str) -> None:
    assert guest.run(SET[kind]).status == 0
    ran = guest.run(ADD[kind])
    assert (ran.status, ran.stdout, ran.stderr) == (0, b"42\n", b"")


def test_a_step_without_a_wish_for_rich_results_echoes_nothing(guest: Guest, kind: str) -> None:
    ran = guest.run({"python": "1 + 1", "node": "1 + 1", "bash": ": 1"}[kind])
    assert (ran.status, ran.stdout, ran.stderr, ran.displays) == (0, b"", b"", [])


def test_a_failure_is_told_and_the_state_stays(guest: Guest, kind: str) -> None:
    guest.run(SET[kind])
    failed = guest.run(FAILING[kind])
    assert failed.status == {"bash": 127}.get(kind, 1)
    words = {"python": b"ZeroDivisionError", "node": b"Error: bad", "bash": b"no_such_command: command not found"}
    assert words[kind] in failed.stderr
    assert guest.run(ADD[kind]).stdout == b"42\n"


def test_wrong_syntax_is_told_and_the_state_stays(guest: Guest, kind: str) -> None:
    guest.run(SET[kind])
    wrong = guest.run(WRONG[kind])
    assert wrong.status == {"bash": 2}.get(kind, 1)
    assert (b"SyntaxError" if kind != "bash" else b"syntax error") in wrong.stderr
    assert wrong.stdout == b""
    assert guest.run(ADD[kind]).stdout == b"42\n"


@pytest.mark.parametrize("programs", [BUSY, WAITING], ids=["busy", "waiting"])
def test_an_interrupt_ends_the_step_and_the_state_stays(guest: Guest, kind: str, programs: dict[str, str]) -> None:
    guest.run(SET[kind])
    for _ in range(3):
        stopped = guest.run(programs[kind], interrupt_at=GO)
        assert (stopped.status, stopped.stdout) == (STOPPED, GO)
    assert guest.run(ADD[kind]).stdout == b"42\n"


def test_an_interrupt_between_steps_does_nothing(guest: Guest, kind: str) -> None:
    guest.run(SET[kind])
    for _ in range(5):
        guest.interrupt()
    # The signals are taken before what a process that was sent the last of them writes is read.
    ran = guest.run(ADD[kind])
    assert (ran.status, ran.stdout, ran.stderr) == (0, b"42\n", b"")


def test_stdin_is_the_steps_own_file_or_nothing(guest: Guest, kind: str) -> None:
    given = guest.run(READ[kind], stdin="one\ntwo é".encode()).stdout.decode()
    assert given == {"python": "'one\\ntwo é'\n", "node": '"one\\ntwo é"\n', "bash": "one\ntwo é"}[kind]
    assert guest.run(READ[kind]).stdout == {"python": b"''\n", "node": b'""\n', "bash": b""}[kind]
    assert not (guest.work / ".stdin").exists()


def test_output_is_whole_when_a_step_is_over(guest: Guest, kind: str) -> None:
    assert guest.run(MANY[kind]).stdout == b"x" * 3_000_000 + b"\n"


def test_text_is_utf_8_both_ways(guest: Guest, kind: str) -> None:
    assert guest.run(UNICODE[kind]).stdout == "é€𝄞\n".encode()


def test_code_of_any_length_arrives_whole(guest: Guest, kind: str) -> None:
    comment = {"node": "//"}.get(kind, "#")
    assert guest.run(f"{comment}{'-' * 150_000}\n{SET[kind]}").status == 0
    assert guest.run(ADD[kind]).stdout == b"42\n"
    assert guest.run("").status == 0


def test_a_process_that_ends_says_no_end(guest: Guest, kind: str) -> None:
    ran = guest.run(EXITS[kind])
    assert ran.status is None
    assert guest.process.wait(timeout=10) == 3


def test_a_lasting_process_ends_with_its_host(guest: Guest, kind: str) -> None:
    guest.run(SET[kind])
    guest.ctl.close()
    assert guest.process.wait(timeout=10) == 125


def test_a_program_that_closes_ctl_ends_with_its_own_status(tmp_path: Path) -> None:
    guest = start("python", tmp_path)
    assert guest.run("import os; os.closerange(3, 256)").status is None
    assert guest.process.wait(timeout=10) == 0
    guest.close()


# --- Python


def test_a_traceback_shows_the_lines_of_every_step_and_no_frame_of_ours(python: Guest, tmp_path: Path) -> None:
    steps = "def divide(a, b):\n    return a / b", "from step_1 import divide\ndivide(1, 0)"
    for number, code in enumerate(steps, 1):
        (tmp_path / f"step_{number}.py").write_text(code)
    plain = subprocess.run(
        ["/usr/bin/python3", tmp_path / "step_2.py"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    python.run(steps[0])
    ran = python.run(steps[1].replace("from step_1 import divide", "print('first')"))
    assert ran.stderr.decode() == re.sub(r'".*/step_(\d)\.py"', r'"<step-\1>"', plain.stderr)
    assert '  File "<step-1>", line 2, in divide\n    return a / b\n' in ran.stderr.decode()


# Before 3.12 a profiler is told when functions of ours return.
@pytest.mark.parametrize("kind", ["settrace", "setprofile"] if sys.version_info >= (3, 12) else ["settrace"])
def test_a_tracer_lasts_and_sees_no_frame_of_ours(python: Guest, kind: str) -> None:
    python.run(f"import sys\nseen = []\nsys.{kind}(lambda f, *a: seen.append(f.f_code.co_filename))")
    ran = python.run("def f(): pass\nf()\n1 / 0", rich=True)
    assert ran.status == 1
    assert ran.stderr.endswith(b"ZeroDivisionError: division by zero\n")
    ran = python.run(
        f"sys.{kind}(None)\nprint('<step-2>' in seen, [n for n in seen if 'sandfork' in n or '/fd/' in n])"
    )
    assert ran.stdout == b"True []\n"


def test_no_frame_of_ours_is_on_the_stack(python: Guest) -> None:
    ran = python.run("import traceback; print(len(traceback.extract_stack()))")
    assert ran.stdout == b"1\n"


def test_the_source_of_an_earlier_steps_function_is_found(python: Guest) -> None:
    python.run("def twice(n):\n    return 2 * n\n")
    ran = python.run("import inspect; print(inspect.getsource(twice), end='')")
    assert ran.stdout == b"def twice(n):\n    return 2 * n\n"


@pytest.mark.parametrize(
    ("code", "status", "told"),
    [("exit(4)", 4, b""), ("raise SystemExit", 0, b""), ("import sys; sys.exit('why')", 1, b"why\n")],
)
def test_system_exit_ends_the_step_only(python: Guest, code: str, status: int, told: bytes) -> None:
    python.run("x = 1")
    ran = python.run(code)
    assert (ran.status, ran.stderr) == (status, told)
    assert python.run("print(x)").stdout == b"1\n"


def test_await_works_at_top_level_and_tasks_live_on(python: Guest) -> None:
    python.run("import asyncio\nasync def answer():\n    await asyncio.sleep(0)\n    return 42")
    python.run("task = asyncio.create_task(answer())\nawait asyncio.sleep(0)")
    assert python.run("print(await task, asyncio.get_running_loop() is task.get_loop())").stdout == b"42 True\n"
    assert python.run("asyncio.run(answer())").status == 0
    assert python.run("print(await answer())").stdout == b"42\n"


def test_an_interrupt_during_an_await_is_told_where_it_waited(python: Guest) -> None:
    code = "import asyncio\nprint('go', flush=True)\nawait asyncio.sleep(1000)"
    ran = python.run(code, interrupt_at=GO)
    assert ran.status == STOPPED
    assert ran.stderr.endswith(b"KeyboardInterrupt\n")
    assert b"CancelledError" not in ran.stderr
    assert ran.stderr.startswith(b'Traceback (most recent call last):\n  File "<step-1>"')


@pytest.mark.parametrize(
    "code",
    [
        "import asyncio\nawait asyncio.sleep(0.01)\nprint('go', flush=True)\nwhile True: pass",
        "import asyncio\nprint('go', flush=True)\nwhile True: await asyncio.sleep(0)",
        SPINNING,
        "print('go', flush=True)\nimport re; re.match('(a+)+$', 'a' * 60 + 'b')",
        "import threading\nprint('go', flush=True)\nthreading.Event().wait()",
    ],
    ids=["after an await", "a loop of awaits", "a callback", "a pattern", "a lock"],
)
def test_python_heeds_an_interrupt_in_awaits_patterns_and_locks(python: Guest, code: str) -> None:
    python.run("x = 41; file = open('/dev/null')")
    for _ in range(2):
        assert python.run(code, interrupt_at=GO).status == STOPPED
    assert python.run("print(x + 1, repr(file.read()))").stdout == b"42 ''\n"


def test_a_program_may_catch_the_interrupt(python: Guest) -> None:
    code = "try:\n    print('go', flush=True)\n    while True: pass\nexcept KeyboardInterrupt:\n    print('caught')"
    ran = python.run(code, interrupt_at=GO)
    assert (ran.status, ran.stdout, ran.stderr) == (0, b"go\ncaught\n", b"")


def test_a_signal_between_steps_waits_for_the_next(python: Guest) -> None:
    python.run("import os, signal\ndef late(*_): raise TimeoutError('late')\nsignal.signal(signal.SIGALRM, late)")
    python.process.send_signal(signal.SIGALRM)
    # It may come before or after the next step began, but in a step it comes, and ends no more than that.
    ran = python.run("while True: pass")
    assert ran.status == 1
    assert b"TimeoutError: late" in ran.stderr
    assert python.run("print(1)").stdout == b"1\n"


def test_a_child_that_the_program_forks_does_not_answer_for_it(python: Guest) -> None:
    ran = python.run("import os\npid = os.fork()\nif pid: os.waitpid(pid, 0)\nprint('parent' if pid else 'child')")
    assert (ran.status, ran.stdout) == (0, b"child\nparent\n")
    assert python.run("print(pid > 0)").stdout == b"True\n"


def test_limits_and_variables_are_the_steps_but_not_the_processor_time(python: Guest) -> None:
    code = "import os, resource as r\n"
    code += "print(r.getrlimit(r.RLIMIT_NOFILE)[0], r.getrlimit(r.RLIMIT_CPU)[0], os.environ['A'])"
    ran = python.run(code, limits={"n": 100, "p": 7}, env={"A": "b=é"})
    assert ran.stdout.decode() == "100 -1 b=é\n"


def test_a_plain_run_that_wants_rich_results_is_a_plain_run(python: Guest) -> None:
    code = "import sys\nprint(__file__, sys.argv)\nprint('x', end='')\nlen(sys.argv)"
    ran = python.run(code, lasting=False, rich=True, args=["a"])
    main = str(python.work / "main.py")
    assert ran.stdout.decode() == f"{main} ['{main}', 'a']\nx"
    assert ran.displays == [{"kind": "result", "data": {"text/plain": "2"}}]
    assert python.process.wait(timeout=10) == 0


# --- rich results


def test_the_value_of_the_last_expression_is_shown_and_kept(python: Guest) -> None:
    assert python.run("6 * 7", rich=True).displays == [{"kind": "result", "data": {"text/plain": "42"}}]
    assert python.run("_ + 1", rich=True).displays == [{"kind": "result", "data": {"text/plain": "43"}}]
    for silent in ("None", "x = 1", "42;", "42  ;  # quiet", "for i in [1]: i"):
        assert python.run(silent, rich=True).displays == []
    assert python.run("import asyncio; await asyncio.sleep(0, 5)", rich=True).displays[0]["data"] == {"text/plain": "5"}


def test_what_is_shown_stands_in_its_place_among_the_output(python: Guest) -> None:
    ran = python.run("print('a', end='')\ndisplay(1, 2)\nprint('b', end='')\n3", rich=True)
    shown = [each if isinstance(each, bytes) else each["data"]["text/plain"] for each in ran.events]
    assert shown == [b"a", "1", "2", b"b", "3"]


def test_display_prints_where_nothing_is_rich(python: Guest) -> None:
    python.run("1", rich=True)
    ran = python.run("display([1], 'a')")
    assert (ran.stdout, ran.displays) == (b"[1]\n'a'\n", [])


RICH = """
class Rich:
    def _repr_html_(self): return '<b>é\\ud800</b>'
    def _repr_png_(self): return b'png', {'width': 3}
    def _repr_json_(self): return {'a': [1]}
    def _repr_latex_(self): raise ValueError
    def _repr_svg_(self): return None
    def _repr_mimebundle_(self, include, exclude): return {'text/x-own': 'own', 'text/markdown': '*m*'}
    def _repr_markdown_(self): return 'not asked'
    def __repr__(self): return 'rich'
Rich()
"""


def test_a_value_is_shown_in_every_way_it_knows(python: Guest) -> None:
    (shown,) = python.run(RICH, rich=True).displays
    assert shown["data"] == {
        "text/x-own": "own", "text/markdown": "*m*", "text/html": "<b>é?</b>", "text/plain": "rich",
        "image/png": base64.b64encode(b"png").decode(), "application/json": json.dumps({"a": [1]}),
    }  # fmt: skip


def test_a_value_that_cannot_be_shown_does_not_harm_the_step(python: Guest) -> None:
    ran = python.run("class Broken:\n    def __repr__(self): 1/0\nprint('a')\nBroken()", rich=True)
    assert (ran.status, ran.stdout, ran.displays) == (0, b"a\n", [])
    assert b"ZeroDivisionError" in ran.stderr
    ran = python.run("class Yes:\n    def __getattr__(self, name): return lambda *a, **k: name\nYes()", rich=True)
    assert [set(each["data"]) for each in ran.displays] == [{"text/plain"}]
    ran = python.run("class Half:\n    def _repr_html_(self): return 'h'\nHalf, Half()", rich=True)
    assert [set(each["data"]) for each in ran.displays] == [{"text/plain"}]


def test_what_is_too_large_is_left_out_and_the_rest_is_shown(python: Guest) -> None:
    code = "class Large:\n    def _repr_html_(self): return 'é' * (5 << 20)\n"
    code += "    def __repr__(self): return 'r' * (1 << 20)\n"
    ran = python.run(code + "display(Large())\n'x' * (9 << 20)", rich=True)
    assert [set(each["data"]) for each in ran.displays] == [{"text/plain"}]
    assert len(ran.displays[0]["data"]["text/plain"]) == 1 << 20


def test_threads_may_show_at_the_same_time_and_not_after_the_step(python: Guest) -> None:
    code = "import threading\ndef show(n):\n    for _ in range(20): display('%d' % n * 50_000)\n"
    code += "threads = [threading.Thread(target=show, args=(n,)) for n in range(4)]\n[t.start() for t in threads]\n"
    ran = python.run(code + "[t.join() for t in threads];", rich=True)
    assert len(ran.displays) == 80
    python.run("threads = [threading.Thread(target=show, args=(5,))]; threads[0].start();", rich=True)
    ran = python.run("threads[0].join(); print('end')")
    assert ran.stdout.endswith(b"end\n")


def test_figures_tables_and_images_are_shown(python: Guest) -> None:
    packages = guest_packages()
    if packages is None:
        pytest.skip("the packages of the sandboxes are not installed")
    python.run(f"import sys; sys.path.append({str(packages)!r})")
    code = "import matplotlib.pyplot as plt\nfor n in range(2):\n    plt.plot([1, n]); plt.show(); print(n)\n"
    code += "plt.figure().gca();"
    ran = python.run(code, rich=True)
    assert ran.stdout == b"0\n1\n"
    assert [isinstance(each, bytes) for each in ran.events] == [False, True, False, True, False]
    assert all(base64.b64decode(each["data"]["image/png"]).startswith(PNG) for each in ran.displays)
    ran = python.run("figure, axes = plt.subplots()\nfigure", rich=True)
    assert [(each["kind"], set(each["data"])) for each in ran.displays] == [("result", {"image/png", "text/plain"})]
    ran = python.run("import pandas\npandas.DataFrame({'a': [1]})", rich=True)
    assert "<table" in ran.displays[0]["data"]["text/html"]
    ran = python.run("from PIL import Image\nImage.new('RGB', (4, 4))", rich=True)
    assert base64.b64decode(ran.displays[0]["data"]["image/png"]).startswith(PNG)
    assert (
        python.run("print(plt.get_fignums(), [f for f in sys.meta_path if 'Pyplot' in repr(f)])").stdout == b"[] []\n"
    )


def test_node_shows_the_value_of_the_last_expression(node: Guest) -> None:
    shown = {"kind": "result", "data": {"text/plain": "{ a: 5 }"}}
    assert node.run("const v = await Promise.resolve(5); ({ a: v })", rich=True).displays == [shown]
    assert node.run("undefined", rich=True).displays == []
    (shown,) = node.run("'x'.repeat(9000000)", rich=True).displays
    assert shown["data"]["text/plain"].endswith("more characters")


# --- node


def test_declarations_stay_and_may_be_made_again(node: Guest) -> None:
    node.run("let a = 1; const b = 2; class C {}; function f() { return a + b }")
    assert node.run("let a = 5; const b = 7; console.log(f(), C.name)").stdout == b"12 C\n"


def test_an_uncaught_error_is_told_as_node_tells_it(node: Guest) -> None:
    node.run("function f() {\n  throw new TypeError('bad')\n}")
    version = subprocess.run(["/usr/bin/node", "--version"], capture_output=True, text=True, check=True).stdout
    assert node.run("f()").stderr.decode() == (
        "<step-1>:2\n  throw new TypeError('bad')\n        ^\n\n"
        "TypeError: bad\n    at f (<step-1>:2:9)\n    at <step-2>:1:1\n\n"
        f"Node.js {version}"
    )


@pytest.mark.parametrize(
    "code",
    [
        "Promise.reject(new Error('bad'))",
        "setTimeout(() => { throw new Error('bad') }, 1)",
        "process.nextTick(() => { throw new Error('bad') })",
        "await (async () => { throw new Error('bad') })()",
    ],
)
def test_an_error_that_nobody_catches_ends_the_step_with_1(node: Guest, code: str) -> None:
    ran = node.run(code)
    assert ran.status == 1
    assert b"Error: bad" in ran.stderr
    assert node.run("console.log(1)").stdout == b"1\n"


def test_a_step_lasts_as_long_as_what_it_began(node: Guest) -> None:
    code = "async function main() { await new Promise(r => setTimeout(r, 20)); console.log('done') }\n"
    code += "main(); console.log(1)"
    assert node.run(code).stdout == b"1\ndone\n"
    assert (
        node.run("require('child_process').exec('echo child', (e, out) => console.log(out.trim()))").stdout
        == b"child\n"
    )


def test_a_server_outlasts_its_step_and_serves_later_ones(node: Guest) -> None:
    node.run("const server = require('http').createServer((q, r) => r.end('served')).listen(0, '127.0.0.1')")
    ran = node.run("const r = await fetch(`http://127.0.0.1:${server.address().port}`); console.log(await r.text())")
    assert (ran.status, ran.stdout) == (0, b"served\n")


def test_modules_are_found_from_the_work_directory(node: Guest) -> None:
    (node.work / "m.js").write_text("exports.v = 3")
    code = "const m = await import('./m.js')\n"
    code += "console.log(require('./m').v, m.default.v, require.main === module, 'import(x)')"
    ran = node.run(code)
    assert (ran.stdout, ran.stderr) == (b"3 3 true import(x)\n", b"")


def test_every_place_of_import_is_told_apart(node: Guest) -> None:
    code = "const t = async (s) => typeof (await import(s)).join\n"
    code += "console.log(`${await t('path')} import(1)`, /import(2)/.source, 'import(3)', 4 / 2 /* import(5) */)"
    assert node.run(code).stdout == b"function import(1) import(2) import(3) 2\n"


def test_the_exit_code_is_the_steps(node: Guest) -> None:
    assert node.run("process.exitCode = 5").status == 5
    assert (
        node.run("console.log(process.argv.slice(2), process.env.A)", args=["q"], env={"A": "b"}).stdout
        == b"[ 'q' ] b\n"
    )


def test_output_goes_on_after_an_interrupted_write(node: Guest) -> None:
    for _ in range(5):
        assert node.run("console.log('go'); while (true) console.error('x')", interrupt_at=GO).status == STOPPED
        assert node.run("console.log('on')").stdout == b"on\n"


def test_a_listener_of_its_own_decides_what_an_interrupt_does(node: Guest) -> None:
    code = "process.on('SIGINT', () => { console.log('own'); clearTimeout(long) })\n"
    code += "const long = setTimeout(() => {}, 1e6); setTimeout(() => console.log('go'), 20)"
    ran = node.run(code, interrupt_at=GO)
    assert (ran.status, ran.stdout) == (0, b"go\nown\n")


GO_THEN = "console.log('go'); for (;;) {}"
#: Loops that no listener of a signal gets a turn in, by where they were entered from.
LOOPS = {
    "after an await": f"await new Promise((r) => setTimeout(r, 5)); {GO_THEN}",
    "a timer": f"setTimeout(() => {{ {GO_THEN} }}, 1)",
    # All due at once: of those that come due later a loop is the next step's.
    "one timer after another": (
        f"for (const n of [1, 2, 3]) setTimeout(() => {{ {GO_THEN} }}, 1);"
        "for (const since = Date.now(); Date.now() < since + 5; );"
    ),
    "immediates": f"for (const n of [1, 2, 3]) setImmediate(() => {{ {GO_THEN} }})",
    "a tick": f"process.nextTick(() => {{ {GO_THEN} }})",
    "microtasks": "console.log('go'); (async () => { for (;;) await 0; })()",
    "a file's callback": f"require('fs').readFile('/dev/null', () => {{ {GO_THEN} }})",
    "a child's output": f"require('child_process').exec('echo').stdout.on('data', () => {{ {GO_THEN} }})",
    "a local of its own": (
        "new (require('async_hooks').AsyncLocalStorage)()"
        f".run(1, () => setTimeout(async () => {{ await 0; {GO_THEN} }}))"
    ),
    "a timer with hooks of its own": (
        f"require('async_hooks').createHook({{ init() {{}} }}).enable(); setTimeout(() => {{ {GO_THEN} }}, 1)"
    ),
    "a promise with hooks of its own": (
        "require('async_hooks').createHook({ init() {}, before() {}, after() {}, destroy() {} }).enable();"
        f"setImmediate(async () => {{ await 0; {GO_THEN} }})"
    ),
    "a handler of everything": (
        "setTimeout(() => { console.log('go'); for (;;) try { for (;;); } catch {} finally { for (;;); } })"
    ),
    "a pattern": "setTimeout(() => { console.log('go'); /^(a+)+$/.test('a'.repeat(60) + 'b') })",
    "a wait": ("setTimeout(() => { console.log('go'); Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0) })"),
    "a promise that never settles": "console.log('go'); await new Promise(() => {})",
}


@pytest.mark.parametrize("loop", LOOPS)
def test_node_breaks_a_loop_wherever_it_was_entered_from(node: Guest, loop: str) -> None:
    node.run("globalThis.x = 41; const file = require('fs').openSync('/dev/null'); let ticks = 0")
    node.run("setInterval(() => { ticks += 1 }, 1).unref()")
    for _ in range(2):
        stopped = node.run(LOOPS[loop], interrupt_at=GO)
        assert (stopped.status, stopped.stderr) == (STOPPED, b"")
        assert set(stopped.stdout.splitlines()) == {b"go"}
    # What was there is there, and node's own machinery goes on: timers old and new, promises, files, immediates.
    ran = node.run(
        "const since = ticks; await new Promise((done) => {\n"
        "  const again = setInterval(() => ticks > since && done(clearInterval(again)), 1)\n"
        "})\n"
        "await new Promise(setImmediate); const text = await require('fs/promises').readFile('/dev/null', 'utf8')\n"
        "require('fs').fstatSync(file)\n"
        "console.log(x + 1, text.length, process.getActiveResourcesInfo().includes('Immediate'))"
    )
    assert (ran.status, ran.stdout, ran.stderr) == (0, b"42 0 false\n", b"")


def test_an_interrupt_that_follows_hard_on_another_is_heard(node: Guest) -> None:
    node.run("let x = 41; process.on('SIGINT', () => {})")
    code = "for (let n = 0; n < 5000; n++) { process.kill(process.pid, 'SIGINT'); await new Promise(setImmediate) }\n"
    # What is not heard is broken, the word that the step is over included. On a busy machine the loop itself may be.
    assert node.run(code + "await new Promise((done) => setTimeout(done, 100))").status in (0, STOPPED)
    assert node.run("console.log(x + 1)").stdout == b"42\n"


#: Waits that nothing can end any more, so that all there is of them may be collected. What they write comes after that.
FORGOTTEN = {
    "at once": "setTimeout(collect, 20); await new Promise(() => {})",
    "after an await": "setTimeout(collect, 20); await 0; await new Promise(() => {})",
    "in a function": "setTimeout(collect, 20); await (async () => { await new Promise(() => {}) })()",
}


@pytest.mark.parametrize("wait", FORGOTTEN)
def test_a_wait_that_nothing_can_end_outlasts_a_collection(node: Guest, wait: str) -> None:
    collector = "require('v8').setFlagsFromString('--expose-gc'); const gc = require('vm').runInNewContext('gc')\n"
    node.run(collector + "function collect() { gc(); gc(); console.log('go') }")
    for _ in range(2):
        stopped = node.run(FORGOTTEN[wait], interrupt_at=GO)
        assert (stopped.status, stopped.stdout, stopped.stderr) == (STOPPED, GO, b"")
    assert node.run("collect()").stdout == GO


def test_a_loop_left_behind_by_a_step_costs_the_next_one_no_state(node: Guest) -> None:
    node.run("globalThis.x = 41; const { existsSync } = require('fs')")
    node.run("setInterval(() => { if (existsSync('now')) { console.log('go'); for (;;); } }, 1).unref()")
    (node.work / "now").touch()
    assert node.run("await new Promise(() => {})", interrupt_at=GO).status == STOPPED
    assert node.run("console.log(x + 1)").stdout.endswith(b"42\n")


# --- bash


def test_everything_of_the_shell_stays(bash: Guest) -> None:
    bash.run("declare -A map=([a]=1); f() { echo f; }; alias ll='echo ll'; cd /; set -o pipefail; shopt -s nullglob")
    ran = bash.run("echo ${map[a]}; f; ll; pwd; false | true; echo $?; echo /no*such")
    assert ran.stdout == b"1\nf\nll\n/\n1\n\n"


def test_the_status_is_that_of_the_last_command(bash: Guest) -> None:
    assert bash.run("false").status == 1
    assert bash.run("(exit 77)").status == 77
    assert bash.run("kill -9 $BASHPID &\nwait $!").status == 137


def test_an_error_that_ends_a_script_ends_no_session(bash: Guest) -> None:
    bash.run("x=41")
    assert bash.run("echo ${no:?missing}; echo no").stdout == b""
    assert bash.run("set -u; echo $no").status == 1
    assert bash.run("echo $((x + 1))").stdout == b"42\n"


@pytest.mark.parametrize("code", ["break", "continue", "return 3", "set -x; :; set +x", "PROMPT_COMMAND=", "TMOUT=1"])
def test_nothing_a_step_does_reaches_the_driver(bash: Guest, code: str) -> None:
    bash.run(code)
    assert bash.run("echo a").stdout == b"a\n"
    assert bash.run("echo go; sleep 1000", interrupt_at=GO).status == STOPPED
    assert bash.run("echo b").stdout == b"b\n"


def test_a_trace_shows_the_commands_of_the_program_only(bash: Guest) -> None:
    bash.run("set -x")
    ran = bash.run("echo a")
    assert ran.stderr.lstrip(b"+") == b" echo a\n"
    assert bash.run("set +x; echo b").stderr.lstrip(b"+") == b" set +x\n"
    assert bash.run("echo c").stderr == b""


def test_a_trap_of_the_programs_own_stays_and_works(bash: Guest) -> None:
    bash.run("trap 'echo caught' INT")
    for _ in range(2):
        ran = bash.run("bash -c 'echo go; exec sleep 1000'; echo on", interrupt_at=GO)
        assert (ran.status, ran.stdout) == (0, b"go\ncaught\non\n")
    bash.interrupt()
    assert bash.run("trap -p INT").stdout == b"trap -- 'echo caught' SIGINT\n"


def test_background_processes_stay_without_a_word(bash: Guest) -> None:
    ran = bash.run("sleep 1000 &")
    assert (ran.stdout, ran.stderr) == (b"", b"")
    assert bash.run("kill %1; wait %1 2>/dev/null; echo $?").stdout == b"143\n"


def test_an_option_that_ends_the_shell_ends_it(bash: Guest) -> None:
    assert bash.run("set -e; false; echo no").status is None
    assert bash.process.wait(timeout=10) == 1


def test_no_file_is_left_by_any_of_them(kind: str, tmp_path: Path) -> None:
    guest = start(kind, tmp_path)
    guest.run(SET[kind])
    assert list(tmp_path.iterdir()) == []
    guest.close()
