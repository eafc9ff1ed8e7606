"""Compiled programs on the real tier: the compiler is confined and limited like any program, and what it makes runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace

import pytest
import uvloop

from sandfork.engine.engine import Engine, EngineSettings
from sandfork.engine.policy import LimitPolicy
from sandfork.languages.catalogue import Catalogue, Language
from sandfork.languages.language import CompileSpec, TemplateKind, TemplateSpec
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
)
from sandfork.model import Snippet as Program
from tests.support.process import STUCK_S, process_tier, start_native

CALLER = Caller("somebody")
#: "Compiled" by a shell that runs the text; what it leaves in .build/main is the program.
#: Memory beyond the disk, which is of it, and little enough to be taken long before the time is over.
COMPILER_LIMITS = LimitsOverride(wall_s=3.0, memory_bytes=128 << 20)
LANGUAGE = Language(
    name="made",
    aliases=(),
    extension=".made",
    file_name="main.made",
    argv=("{out}",),
    compile=CompileSpec(("/bin/sh", "{name}", "{out}"), (".build/main",), COMPILER_LIMITS),
)
assert LANGUAGE.compile is not None
#: The same with time enough on a machine that others use, too, for what another limit is to end.
UNHURRIED = replace(LANGUAGE, compile=replace(LANGUAGE.compile, limits=replace(COMPILER_LIMITS, wall_s=STUCK_S / 2)))
#: For interpreters that are up already: where each finds what was made for it, and a program that tells whether it was.
ON_TEMPLATES = {
    "python": (
        "main.py",
        TemplateSpec("python", TemplateKind.FORK, "/usr/bin/python3"),
        "print('zygote.so' in open('/proc/self/maps').read(), __file__)",
    ),
    "node": (
        "main.js",
        TemplateSpec("node", TemplateKind.PARK, "/usr/bin/node"),
        "console.log(String(require('fs').readFileSync('/proc/self/cmdline')).includes('park') && 'True', __filename)",
    ),
    "perl": (
        ".build/main",
        TemplateSpec(
            "perl",
            TemplateKind.FORK,
            "/usr/bin/perl",
            fork_at="open",
            start=("/usr/bin/perl", "{out}"),
            file_name=".build/main",
        ),
        "open F, '/proc/self/maps'; print grep(/preload/, <F>) && 'True', qq( $0\n)",
    ),
}
SETTINGS = EngineSettings(policy=LimitPolicy(default=Limits(wall_s=2.0)))
MAKE = 'printf "#!/bin/sh\\n%s\\n" "{}" > "$1"; chmod +x "$1"; '


@pytest.fixture(autouse=True)
def _root(as_root: None) -> None:
    """Every test here starts processes as root."""


Run = Callable[..., Awaitable[ExecResult]]


def with_language(check: Callable[[Run], Awaitable[None]], language: Language = LANGUAGE) -> None:
    """Run `check` over an engine of its own; afterwards no sandbox may be left."""
    launched = start_native()

    async def run() -> None:
        tier = process_tier(launched, catalogue=Catalogue([language]))
        try:
            async with asyncio.timeout(STUCK_S):
                await tier.start()
                catalogue = Catalogue([language])
                engine = Engine(tier, catalogue, {spec.key: 0 for spec in catalogue.templates()}, SETTINGS)
                await engine.start()

                async def execute(code: str, **change: object) -> ExecResult:
                    request = ExecRequest(Program("made", code), **change)  # type: ignore[arg-type]
                    return await engine.execute(request, CALLER)

                try:
                    await check(execute)
                finally:
                    await engine.close()
                assert tier.live == 0
        finally:
            await tier.close()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(run())


def test_what_was_made_runs_in_a_sandbox_that_has_nothing_else_of_the_compilers() -> None:
    async def check(run: Run) -> None:
        code = MAKE.format("ls -A . .build /tmp; cat part") + "echo left > left; echo left > /tmp/left; sleep 1000 &"
        for _ in range(2):
            result = await run(code, files=(InputFile("part", b"given"),))
            assert result.stdout.split() == b".: .build .shm .tmp part .build: main /tmp: given".split()
            assert (result.exit_code, result.stderr, result.usage.processes <= 2) == (0, b"", True)

    with_language(check)


def test_a_compiler_is_confined_as_a_program_is() -> None:
    async def check(run: Run) -> None:
        attempts = "id -u; cat /etc/shadow; touch /usr/x; mount -t tmpfs x /mnt; exit 1"
        result = await run(attempts)
        assert result.failed_step == "compile"
        assert result.stdout == b"1000\n"
        said = result.stderr.decode()
        assert said.count("No such file") == 1
        assert said.count("Read-only file system") + said.count("Permission denied") >= 1

    with_language(check)


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        ("sleep 1000", Outcome.TIMED_OUT),
        ("while :; do :; done & while :; do :; done", Outcome.TIMED_OUT),
        ("x=x; while :; do x=$x$x; done", Outcome.OUT_OF_MEMORY),
        ("while :; do echo line; done", Outcome.OUTPUT_LIMIT),
        ("head -c 100000000 /dev/zero > big", Outcome.DISK_LIMIT),
    ],
)
def test_a_compiler_that_takes_too_much_is_stopped_and_told(code: str, outcome: Outcome) -> None:
    async def check(run: Run) -> None:
        result = await run(code)
        assert (result.failed_step, result.outcome) == ("compile", outcome)

    with_language(check, LANGUAGE if outcome is Outcome.TIMED_OUT else UNHURRIED)


def test_a_link_in_the_place_of_what_is_made_leads_nowhere() -> None:
    async def check(run: Run) -> None:
        for made in ('ln -s /etc/passwd "$1"', 'mkfifo "$1"', 'mkdir "$1"', "rm -r .build; ln -s /etc .build"):
            result = await run(made)
            assert (result.failed_step, result.exit_code, result.stdout) == ("compile", 1, b"")

    with_language(check)


def test_in_a_session_a_program_is_made_from_its_files_and_sees_them() -> None:
    async def check(run: Run) -> None:
        use = SessionUse("native", "s", SessionSpec(), fresh=True)
        first = await run(MAKE.format("cat note") + "echo noted > note", session=use)
        assert (first.stdout, first.exit_code) == (b"noted\n", 0)
        second = await run(MAKE.format("cat note; echo ran") + "test -f note", session=use)
        assert second.stdout == b"noted\nran\n"
        stopped = await run("sleep 1000", session=use)
        assert (stopped.failed_step, stopped.outcome) == ("compile", Outcome.TIMED_OUT)
        assert (await run(MAKE.format("cat note"), session=use)).stdout == b"noted\n"

    with_language(check)


@pytest.mark.parametrize("key", ON_TEMPLATES)
def test_what_was_made_for_an_interpreter_runs_in_one_that_is_up_already(key: str) -> None:
    program, template, code = ON_TEMPLATES[key]
    language = Language(
        name="made",
        aliases=(),
        extension=".made",
        file_name="main.made",
        argv=(template.interpreter, program),
        compile=CompileSpec(("/bin/cp", "{name}", program), (program,)),
        templates=(template,),
    )

    async def check(run: Run) -> None:
        use = SessionUse("native", "s", SessionSpec(), fresh=True)
        for result in (await run(code), await run(code), await run(code, session=use)):
            assert (result.stdout.decode(), result.stderr) == (f"True /sandbox/{program}\n", b"")

    with_language(check, language)
