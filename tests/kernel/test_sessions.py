"""Sessions of the engine over the real tier: what lasts, what a limit takes, and that the end takes everything."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from sandfork.engine import execution
from sandfork.engine.engine import Engine, EngineSettings
from sandfork.engine.pool import PoolSettings
from sandfork.engine.sessions import SessionSettings
from sandfork.errors import SessionConflict, SessionNotFound
from sandfork.languages.catalogue import Catalogue
from sandfork.model import (
    Caller,
    Command,
    ExecRequest,
    ExecResult,
    LimitsOverride,
    Outcome,
    SessionKey,
    SessionSpec,
    SessionUse,
    Snippet,
    TerminalSpec,
)
from sandfork.tiers.process import ProcessTier
from tests.support.process import STUCK_S, Tape, process_tier, start_native, until

CALLER = Caller("somebody")
KEY = SessionKey("native", "somebody", "s")
USE = SessionUse("native", "s", SessionSpec())
#: An interpreter ends its step when it has a processor again, which others may have meanwhile.
PATIENCE_S = 20.0


@pytest.fixture(autouse=True)
def _root(as_root: None) -> None:
    """Every test here starts processes as root."""


class Bench:
    """An engine over a tier of its own."""

    def __init__(self, engine: Engine, tier: ProcessTier) -> None:
        self.engine = engine
        self.tier = tier

    async def run(self, code: str, language: str = "python", use: SessionUse = USE, **change: object) -> ExecResult:
        request = ExecRequest(Snippet(language, code), session=use, **change)  # type: ignore[arg-type]
        return await self.engine.execute(request, CALLER)

    async def begin(self, code: str) -> asyncio.Task[ExecResult]:
        """Start code that says `begun`, and return once it has."""
        request, tape = ExecRequest(Snippet("python", code), session=USE), Tape()
        running = asyncio.create_task(self.engine.execute(request, CALLER, tape))
        await tape.until(b"begun")
        return running


def with_engine(check: Callable[[Bench], Awaitable[None]], *, grace_s: float = 1.0, **settings: object) -> None:
    """Run `check` over an engine of its own; afterwards no sandbox may be left."""
    launched = start_native()

    async def run() -> None:
        tier = process_tier(launched)
        try:
            async with asyncio.timeout(STUCK_S):
                await tier.start()
                parts = EngineSettings(
                    pool=PoolSettings(),
                    interrupt_grace_s=grace_s,
                    sessions=SessionSettings(**settings),  # type: ignore[arg-type]
                )
                engine = Engine(tier, Catalogue.load(), dict.fromkeys(KEYS, 0), parts)
                await engine.start()
                try:
                    await check(Bench(engine, tier))
                finally:
                    await engine.close()
                assert tier.live == 0
        finally:
            await tier.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


KEYS = ("python", "python-numpy", "node", "command")


def said(result: ExecResult) -> tuple[int, bytes]:
    return result.status, result.stdout + result.stderr


def test_an_interpreter_keeps_its_state_between_executions() -> None:
    async def check(bench: Bench) -> None:
        assert said(await bench.run("x = 41\nimport json")) == (0, b"")
        assert said(await bench.run("print(x + 1, json.dumps([x]))")) == (0, b"42 [41]\n")
        assert said(await bench.run("a=1; cd /tmp; f() { echo f$a; }", "bash")) == (0, b"")
        assert said(await bench.run("f; pwd", "bash")) == (0, b"f1\n/tmp\n")
        assert said(await bench.run("const y = 5; open = 1", "node")) == (0, b"")
        assert said(await bench.run("console.log(y + open)", "node")) == (0, b"6\n")
        state = bench.engine.sessions.state(KEY)
        assert (state.executions, state.language, state.busy) == (6, "python", False)

    with_engine(check)


@pytest.mark.parametrize(
    ("language", "before", "spin", "after"),
    [
        ("python", "x = 1", "while True: pass", "print(x)"),
        ("bash", "x=1", "while :; do sleep 1; done", "echo $x"),
        ("node", "var x = 1", "while (true);", "console.log(x)"),
        ("node", "globalThis.x = 1", "await new Promise(r => setTimeout(r, 10)); for (;;);", "console.log(x)"),
        ("node", "globalThis.x = 1", "setTimeout(() => { for (;;); }, 1)", "console.log(x)"),
        ("node", "globalThis.x = 1", "(async () => { for (;;) await 0; })()", "console.log(x)"),
        ("node", "globalThis.x = 1", "await new Promise(() => {})", "console.log(x)"),
    ],
)
def test_a_timeout_interrupts_and_the_state_stays(
    language: str, before: str, spin: str, after: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(execution, "_GRACE_AT_LEAST_S", PATIENCE_S)

    async def check(bench: Bench) -> None:
        await bench.run(before, language)
        for _ in range(2):
            result = await bench.run(spin, language, limits=LimitsOverride(wall_s=0.3))
            assert (result.outcome, result.state_lost) == (Outcome.TIMED_OUT, False)
        assert said(await bench.run(after, language)) == (0, b"1\n")

    with_engine(check, grace_s=PATIENCE_S)


def test_what_does_not_heed_an_interrupt_is_killed_and_the_files_stay() -> None:
    async def check(bench: Bench) -> None:
        await bench.run("open('kept', 'w').write('k'); x = 1")
        stubborn = "import signal\nsignal.signal(signal.SIGINT, signal.SIG_IGN)\nwhile True: pass"
        result = await bench.run(stubborn, limits=LimitsOverride(wall_s=0.3))
        assert (result.outcome, result.state_lost) == (Outcome.TIMED_OUT, True)
        assert said(await bench.run("print(open('kept').read(), 'x' in globals())")) == (0, b"k False\n")

    with_engine(check)


def test_a_crash_and_a_limit_say_so_and_the_session_goes_on() -> None:
    async def check(bench: Bench) -> None:
        await bench.run("x = 1")
        result = await bench.run("import os; os._exit(7)")
        assert (result.exit_code, result.state_lost) == (7, True)
        result = await bench.run("b = bytearray(1 << 30)")
        assert result.outcome is Outcome.OUT_OF_MEMORY
        result = await bench.run("print(1)")
        assert said(result) == (0, b"1\n")
        result = await bench.run("print('x' * (1 << 22))")
        assert (result.outcome, result.truncated, result.state_lost) == (Outcome.OUTPUT_LIMIT, True, True)
        result = await bench.run("import os\nwhile True: os.fork()", limits=LimitsOverride(wall_s=2.0))
        assert result.outcome in (Outcome.PIDS_LIMIT, Outcome.TIMED_OUT)
        assert said(await bench.run("import os\nprint(sum(p.isdigit() for p in os.listdir('/proc')))"))[0] == 0

    with_engine(check)


def test_a_fresh_process_sees_the_files_and_not_the_variables() -> None:
    async def check(bench: Bench) -> None:
        fresh = SessionUse("isol8", "s", SessionSpec(one_language=True), fresh=True)
        assert said(await bench.run("x = 1; open('f', 'w').write('1')", use=fresh)) == (0, b"")
        assert said(await bench.run("print('x' in globals(), open('f').read(), input())", use=fresh, stdin=b"in")) == (
            0,
            b"False 1 in\n",
        )
        with pytest.raises(SessionConflict):
            await bench.run("echo", "bash", use=fresh)
        with pytest.raises(SessionNotFound):
            bench.engine.sessions.state(KEY)

    with_engine(check)


def test_stdin_of_a_step_is_its_own() -> None:
    async def check(bench: Bench) -> None:
        assert said(await bench.run("print(input())", stdin=b"one\n")) == (0, b"one\n")
        assert said(await bench.run("import sys; print(repr(sys.stdin.read()))")) == (0, b"''\n")
        assert said(await bench.run("print(input())", stdin=b"two\n")) == (0, b"two\n")
        assert said(await bench.run("cat", "bash", stdin=b"three\n")) == (0, b"three\n")
        assert said(await bench.run("cat; ls -A /sandbox", "bash"))[0] == 0

    with_engine(check)


def test_executions_of_one_session_run_one_after_another() -> None:
    async def check(bench: Bench) -> None:
        await bench.run("n = 0")
        step = "v = n\nimport time\ntime.sleep(0.01)\nn = v + 1"
        await asyncio.gather(*(bench.run(step) for _ in range(10)))
        assert said(await bench.run("print(n)")) == (0, b"10\n")

    with_engine(check)


def test_two_requests_that_make_one_session_make_one() -> None:
    async def check(bench: Bench) -> None:
        results = await asyncio.gather(*(bench.run("import os; print(os.getpid())") for _ in range(8)))
        assert len({result.stdout for result in results}) == 1
        assert len(bench.engine.sessions) == 1

    with_engine(check)


def test_a_client_that_goes_away_interrupts_and_the_state_stays() -> None:
    async def check(bench: Bench) -> None:
        await bench.run("x = 1")
        going = await bench.begin("x = 2\nimport time\nprint('begun', flush=True)\ntime.sleep(3600)")
        going.cancel()
        with pytest.raises(asyncio.CancelledError):
            await going
        assert said(await bench.run("print(x)")) == (0, b"2\n")

    with_engine(check)


def test_a_deleted_session_is_gone_with_all_in_it() -> None:
    async def check(bench: Bench) -> None:
        await bench.run("x = 1")
        running = await bench.begin("import time\nprint('begun', flush=True)\ntime.sleep(3600)")
        await bench.engine.sessions.delete(KEY)
        with pytest.raises(SessionNotFound):
            await running
        with pytest.raises(SessionNotFound):
            await bench.run("print(x)", use=SessionUse("native", "s"))
        assert said(await bench.run("print('x' in globals())")) == (0, b"False\n")

    with_engine(check)


def test_a_session_ends_when_it_is_idle_and_when_its_lifetime_is_over() -> None:
    async def check(bench: Bench) -> None:
        await bench.engine.sessions.create(KEY, CALLER, SessionSpec(language="python", idle_s=0.2))
        other = SessionKey("native", "somebody", "other")
        await bench.engine.sessions.create(other, CALLER, SessionSpec(lifetime_s=0.2))
        await until(lambda: not len(bench.engine.sessions))
        await until(lambda: not bench.tier.live)

    with_engine(check)


def test_a_command_runs_in_a_process_of_its_own_beside_the_interpreter() -> None:
    async def check(bench: Bench) -> None:
        await bench.run("x = 1; open('f', 'w').write('hello')")
        request = ExecRequest(Command(("cat", "f")), session=USE)
        assert said(await bench.engine.execute(request, CALLER)) == (0, b"hello")
        assert said(await bench.run("print(x)")) == (0, b"1\n")

    with_engine(check)


def test_rich_results_come_with_the_output() -> None:
    async def check(bench: Bench) -> None:
        result = await bench.run("print('out')\n40 + 2", rich=True)
        assert said(result) == (0, b"out\n")
        assert [(d.kind, d.data["text/plain"]) for d in result.displays] == [("result", "42")]
        once = await bench.engine.execute(ExecRequest(Snippet("python", "6 * 7"), rich=True), CALLER)
        assert [d.data["text/plain"] for d in once.displays] == ["42"]

    with_engine(check)


def test_a_terminal_outlives_its_client_and_tells_the_next_what_it_showed() -> None:
    async def check(bench: Bench) -> None:
        sessions = bench.engine.sessions
        await sessions.create(KEY, CALLER, SessionSpec())
        terminal = await sessions.open_terminal(KEY, TerminalSpec(("/bin/bash", "--norc"), 100, 30))
        first = sessions.connect(KEY, terminal.name)
        await first.write(b"echo $((40 + 2)); stty size\n")
        shown = b""
        while b"30 100" not in shown:
            shown += await first.read()
        assert b"42\r\n" in shown
        second = sessions.connect(KEY, terminal.name)
        assert await first.read() == b""
        assert b"42\r\n" in await second.read()
        sessions.resize_terminal(KEY, terminal.name, 120, 40)
        await second.write(b"stty size; exit 5\n")
        shown = b""
        while part := await second.read():
            shown += part
        assert b"40 120" in shown
        assert second.exit_code == sessions.terminal(KEY, terminal.name).exit_code == 5

    with_engine(check)


def test_a_task_survives_its_client() -> None:
    async def check(bench: Bench) -> None:
        task = bench.engine.tasks.start(ExecRequest(Snippet("python", "print(1)")), CALLER)
        await until(lambda: bench.engine.tasks.read(task.task_id, CALLER).ended is not None)
        ended = bench.engine.tasks.read(task.task_id, CALLER).ended
        assert isinstance(ended, ExecResult)
        assert ended.stdout == b"1\n"
        with pytest.raises(SessionNotFound):
            bench.engine.tasks.read(task.task_id, Caller("another"))

    with_engine(check)
