"""Programs that are compiled first: what the compiler gets, what the program is given, and what is kept for later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest

from sandfork.engine.compilation import raise_defaults
from sandfork.engine.compiler import CompilerSettings
from sandfork.engine.engine import Engine, EngineSettings
from sandfork.engine.execution import Execution
from sandfork.engine.policy import LimitPolicy
from sandfork.errors import Draining, ForkFailed, InvalidRequest
from sandfork.languages.catalogue import COMMAND, Catalogue, Language
from sandfork.languages.language import CompileSpec
from sandfork.model import (
    Caller,
    ExecRequest,
    ExecResult,
    InputFile,
    Limits,
    LimitsOverride,
    Outcome,
    SessionSpec,
    SessionUse,
    Snippet,
    Stream,
)
from sandfork.tiers.fake import FakeTier, play_script
from sandfork.tiers.fake.process import FakeProcess
from tests.support.clock import in_virtual_time, settle, virtual_loop
from tests.support.engine import Follower

CALLER = Caller("k1")
OUT = "/sandbox/.build/main"
LANGUAGE = Language(
    name="duo",
    aliases=(),
    extension=".duo",
    file_name="main.duo",
    argv=("{out}", "-x"),
    compile=CompileSpec(
        ("/usr/bin/duoc", "{out}", "{name}", "-m{memory_bytes}"),
        (".build/main",),
        LimitsOverride(wall_s=40.0, memory_bytes=1 << 30),
    ),
    env=(("DUO", "1"),),
)
SESSION = SessionUse("native", "s", SessionSpec(), fresh=True)


class Toolchain:
    """The programs of the fake tier: the compiler plays the text up to `--`, what follows becomes the program.

    `blank N` becomes a program of N bytes that does nothing.
    """

    def __init__(self) -> None:
        self.compiled: list[FakeProcess] = []
        self.ran: list[FakeProcess] = []

    async def __call__(self, process: FakeProcess) -> int:
        step = process.step
        if step.code is None:
            self.ran.append(process)
            found = process.contents.get(OUT)
            if found is None:
                return 127
            process.step = replace(step, code=found)
            return await play_script(process)
        self.compiled.append(process)
        script, _, program = step.code.decode().partition("--\n")
        process.step = replace(step, code=script.encode())
        status = await play_script(process)
        if not status and program:
            size = program.removeprefix("blank ").strip()
            process.contents[OUT] = program.encode() if size == program.strip() else b"\n" * int(size)
        return status


class Bench:
    """An engine with one compiled language over a fake tier."""

    def __init__(self, settings: EngineSettings) -> None:
        self.tools = Toolchain()
        self.tier = FakeTier(program=self.tools, clock_ns=virtual_loop().time_ns)
        self.engine = Engine(
            self.tier, Catalogue([LANGUAGE]), {COMMAND.key: 0}, settings, clock_ns=virtual_loop().time_ns
        )

    async def run(self, code: str, caller: Caller = CALLER, **change: object) -> ExecResult:
        return await self.engine.execute(ExecRequest(Snippet("duo", code), **change), caller)  # type: ignore[arg-type]

    @property
    def counts(self) -> tuple[int, int]:
        """How often the compiler and how often the program ran."""
        return len(self.tools.compiled), len(self.tools.ran)


@asynccontextmanager
async def bench(**compiler: object) -> AsyncIterator[Bench]:
    made = Bench(EngineSettings(compiler=CompilerSettings(**compiler)))  # type: ignore[arg-type]
    await made.engine.start()
    yield made
    await made.engine.close()
    assert not made.tier.alive


@in_virtual_time
async def test_a_program_is_compiled_in_one_sandbox_and_run_in_another() -> None:
    async with bench() as it:
        result = await it.run("out warning\n--\nout hello\nargs\nexit 3", args=("a",), env=(("GIVEN", "g"),))
        assert (result.stdout, result.stderr, result.exit_code) == (b"hello\n-x a\n", b"", 3)
        assert (result.outcome, result.failed_step) == (Outcome.EXITED, "")
        (compiler,), (program,) = it.tools.compiled, it.tools.ran
        assert compiler.guest.home is not program.guest.home
        assert compiler.step.argv == ("/usr/bin/duoc", OUT, "main.duo", f"-m{1 << 30}")
        assert compiler.step.env == (("DUO", "1"),)
        assert program.step.argv == (OUT, "-x", "a")
        assert program.step.env == (("DUO", "1"), ("GIVEN", "g"))
        assert [path for path in program.contents if "main.duo" in path] == []


@in_virtual_time
async def test_a_compiler_that_fails_is_told_as_the_step_that_failed_with_all_it_said() -> None:
    async with bench() as it:
        result = await it.run("out first\nerr main.duo:1: error\nexit 2\n--\nout never")
        assert (result.failed_step, result.outcome, result.exit_code) == ("compile", Outcome.EXITED, 2)
        assert (result.stdout, result.stderr) == (b"first\n", b"main.duo:1: error\n")
        assert it.counts == (1, 0)


@in_virtual_time
async def test_who_follows_the_output_gets_a_failed_compilers_and_not_another_ones() -> None:
    async with bench() as it:
        follower = Follower()
        failed = ExecRequest(Snippet("duo", "err oops\nexit 1"))
        await it.engine.execute(failed, CALLER, follower)
        assert follower.chunks == [(Stream.STDERR, b"oops\n")]
        follower = Follower()
        await it.engine.execute(ExecRequest(Snippet("duo", "err warning\n--\nout hello")), CALLER, follower)
        assert follower.chunks == [(Stream.STDOUT, b"hello\n")]


@in_virtual_time
async def test_the_limits_that_are_told_are_those_that_held() -> None:
    async with bench() as it:
        asked = LimitsOverride(wall_s=3.0, memory_bytes=64 << 20, output_bytes=5000)
        failed = await it.run("sleep 100", limits=asked)
        assert (failed.limits.wall_s, failed.limits.memory_bytes, failed.limits.output_bytes) == (40.0, 1 << 30, 5000)
        ran = await it.run("--\nout hello", limits=asked)
        assert (ran.limits.wall_s, ran.limits.memory_bytes) == (3.0, 64 << 20)


@pytest.mark.parametrize(
    ("script", "outcome"),
    [
        ("sleep 100", Outcome.TIMED_OUT),
        ("limit out_of_memory", Outcome.OUT_OF_MEMORY),
        ("flood 2000000", Outcome.OUTPUT_LIMIT),
        ("signal 11", Outcome.SIGNALLED),
    ],
)
@in_virtual_time
async def test_a_limit_that_ends_the_compiler_is_its_outcome(script: str, outcome: Outcome) -> None:
    async with bench() as it:
        result = await it.run(script + "\n--\nout never")
        assert (result.failed_step, result.outcome) == ("compile", outcome)
        assert len(result.stdout) <= Limits().output_bytes
        assert it.counts == (1, 0)


@in_virtual_time
async def test_the_compiler_has_its_own_time_and_the_program_its_own() -> None:
    async with bench() as it:
        fits = await it.run("sleep 39\n--\nsleep 0.5", limits=LimitsOverride(wall_s=1.0))
        assert (fits.outcome, fits.exit_code) == (Outcome.EXITED, 0)
        assert fits.timings.compile_s == pytest.approx(39)
        assert fits.timings.exec_s == pytest.approx(0.5)
        assert fits.timings.fork_s == pytest.approx(0)
        assert fits.timings.total_s == pytest.approx(39.5)
        late = await it.run("--\nsleep 2", limits=LimitsOverride(wall_s=1.0))
        assert (late.outcome, late.failed_step) == (Outcome.TIMED_OUT, "")
        slow = await it.run("sleep 41")
        assert slow.timings.compile_s == slow.timings.exec_s == pytest.approx(40)


@in_virtual_time
async def test_the_compilers_limits_stay_within_the_servers_and_the_keys() -> None:
    async with bench() as it:
        modest = Caller("k2", max_limits=replace(Limits(), memory_bytes=64 << 20, wall_s=5.0))
        result = await it.run("sleep 6", modest)
        assert result.timings.compile_s == pytest.approx(5)
        assert it.tools.compiled[0].step.argv[-1] == f"-m{64 << 20}"
        large = LimitsOverride(memory_bytes=2 << 30)
        await it.run("--\nexit 0", limits=large)
        assert it.tools.compiled[1].step.argv[-1] == f"-m{2 << 30}"


@in_virtual_time
async def test_what_was_compiled_is_kept_for_the_same_program_of_the_same_key_only() -> None:
    async with bench() as it:
        code, file = "--\nout hello", InputFile("part.duo", b"1")
        for caller, change, compiled in (
            (CALLER, {}, 1),
            (CALLER, {}, 1),
            (CALLER, {"args": ("other",), "stdin": b"x", "env": (("A", "b"),)}, 1),
            (Caller("k2"), {}, 2),
            (CALLER, {"files": (file,)}, 3),
            (CALLER, {"files": (file,)}, 3),
            (CALLER, {"files": (replace(file, content=b"2"),)}, 4),
            (CALLER, {"files": (replace(file, path="other.duo"),)}, 5),
            (CALLER, {"files": (replace(file, mode=0o755),)}, 6),
        ):
            assert (await it.run(code, caller, **change)).stdout == b"hello\n"
            assert len(it.tools.compiled) == compiled
        assert (await it.run(code + " ")).stdout
        assert len(it.tools.compiled) == 7
        counts = it.engine.statistics().artefacts
        assert (counts.entries, counts.hits, counts.misses) == (7, 3, 7)
        it.engine.forget_artefacts()
        await it.run(code)
        assert len(it.tools.compiled) == 8


@in_virtual_time
async def test_nothing_is_kept_of_a_compiler_that_failed() -> None:
    async with bench() as it:
        for times in (1, 2):
            await it.run("write .build/main out\nexit 1")
            assert it.counts == (times, 0)
        assert it.engine.statistics().artefacts.entries == 0


@in_virtual_time
async def test_without_room_nothing_is_kept() -> None:
    async with bench(cache_bytes=0) as it:
        for times in (1, 2):
            await it.run("--\nout hello")
            assert it.counts == (times, times)


@in_virtual_time
async def test_a_compiler_that_makes_nothing_has_failed() -> None:
    async with bench() as it:
        result = await it.run("out no main here")
        assert (result.failed_step, result.outcome, result.exit_code) == ("compile", Outcome.EXITED, 1)
        assert result.stdout == b"no main here\n"


@in_virtual_time
async def test_what_is_too_large_for_the_programs_sandbox_is_not_run() -> None:
    async with bench(artefacts_bytes=1 << 20) as it:
        code, small = "--\nblank 100000", LimitsOverride(disk_bytes=65536)
        for change in ({"limits": small}, {}, {"limits": small}):
            result = await it.run(code, **change)
            assert result.failed_step == ("compile" if change else "")
            assert result.outcome == (Outcome.DISK_LIMIT if change else Outcome.EXITED)
        assert (await it.run("--\nblank 2000000")).outcome is Outcome.DISK_LIMIT


@in_virtual_time
async def test_files_in_the_compilers_directory_are_refused() -> None:
    async with bench() as it:
        for path in (".build", ".build/main"):
            with pytest.raises(InvalidRequest, match="compiler's own directory"):
                await it.run("", files=(InputFile(path, b""),))


@in_virtual_time
async def test_a_sandbox_found_dead_before_the_compiler_began_is_replaced() -> None:
    async with bench() as it:
        it.tier.failing_forks = 1
        assert (await it.run("--\nout hello")).stdout == b"hello\n"
        it.tier.failing_forks = 100
        with pytest.raises(ForkFailed):
            await it.run("--\nout other")
        it.tier.failing_forks = 0


@in_virtual_time
async def test_a_client_that_goes_away_and_a_shutdown_end_the_compiler() -> None:
    async with bench() as it:
        gone = asyncio.ensure_future(it.run("sleep 30"))
        await settle()
        gone.cancel()
        with pytest.raises(asyncio.CancelledError):
            await gone
        stopped = asyncio.ensure_future(it.run("sleep 30"))
        await settle()
        await it.engine.drain(0)
        with pytest.raises(Draining):
            await stopped
        assert it.counts == (2, 0)


@in_virtual_time
async def test_stdin_that_is_fed_is_the_programs() -> None:
    async with bench() as it:
        begun: list[Execution] = []
        request = ExecRequest(Snippet("duo", "sleep 1\n--\ncat"), keep_stdin=True, stdin=b"one ")
        running = asyncio.ensure_future(it.engine.execute(request, CALLER, on_start=begun.append))
        await settle()
        await begun[0].feed(b"two")
        await begun[0].feed(b"")
        assert (await running).stdout == b"one two"


@in_virtual_time
async def test_secrets_that_a_compiler_quotes_are_masked() -> None:
    async with bench() as it:
        result = await it.run("err error: hunter2\nexit 1", secrets=("hunter2",))
        assert result.stderr == b"error: ***\n"


@in_virtual_time
async def test_in_a_session_the_compiler_works_beside_its_files_every_time() -> None:
    async with bench() as it:
        first = await it.run("write kept yes\n--\ncat kept", session=SESSION)
        assert (first.stdout, first.failed_step) == (b"yes", "")
        again = await it.run("write kept yes\n--\ncat kept", session=SESSION)
        assert (again.stdout, it.counts) == (b"yes", (2, 2))
        failed = await it.run("err no\nexit 1", session=SESSION)
        assert (failed.stderr, failed.failed_step, failed.state_lost) == (b"no\n", "compile", False)
        nothing = await it.run("exit 0", session=SESSION)
        assert nothing.exit_code == 127, "what an earlier run left must not run"
        assert len({process.guest.home for process in (*it.tools.compiled, *it.tools.ran)}) == 1


@in_virtual_time
async def test_a_session_that_keeps_state_runs_a_compiled_language_plainly() -> None:
    async with bench() as it:
        result = await it.run("--\nout hello", session=replace(SESSION, fresh=False))
        assert (result.stdout, result.state_lost) == (b"hello\n", False)


def test_defaults_are_raised_to_what_a_language_needs_and_never_above_the_maximum() -> None:
    hungry = replace(LANGUAGE, limits=LimitsOverride(memory_bytes=1 << 40, pids=100))
    policy = LimitPolicy()
    raised = raise_defaults(policy, hungry.limits).default
    assert (raised.memory_bytes, raised.pids) == (policy.maximum.memory_bytes, 100)
    assert raised.wall_s == policy.default.wall_s
    assert raise_defaults(policy, LimitsOverride(pids=1)).default == policy.default
