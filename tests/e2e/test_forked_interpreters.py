"""A program given to an interpreter that forked does what it does in a plain run: same stdout, stderr, exit status.

The control is the same command line, executed in a sandbox of its own.
"""

from __future__ import annotations

import re

import pytest

from sandfork.engine.compilation import command_words
from sandfork.images.rooted import Rooted
from sandfork.languages.catalogue import COMMAND, Catalogue, Language
from sandfork.languages.language import BUILD_DIR
from sandfork.model import InputFile, Limits, Step
from tests.e2e.forked_programs import ALWAYS_THE_SAME, DIFFERENCES, PROGRAMS, RANDOM
from tests.support.process import Ran, Tape, Workbench

LIMITS = Limits(wall_s=20, pids=64)
STDIN = b"first line\nsecond \xc3\xa9\n\nlast"
CATALOGUE = Catalogue.load()
FORKED = {each.name: each for each in CATALOGUE.languages() if each.templates[0].fork_at}
#: What differs between any two plain runs: addresses of objects, and names made up for temporary files.
VARIES = re.compile(rb"0x[0-9a-f]{6,}|(table|function): \S+|HASH\(\w+\)|Rtmp\w{6}|file\w{10,}|tcl_\w{6}")


CASES = [(language, name) for language, programs in PROGRAMS.items() for name in programs]


def offered(name: str) -> Language:
    """Return an installed language, or skip the test saying what is missing."""
    if missing := FORKED[name].missing(Rooted().has):
        pytest.skip(f"{missing[0]} is not installed")
    return FORKED[name]


async def compiled(workbench: Workbench, language: Language, code: str) -> tuple[InputFile, ...]:
    """Return what a compiler makes of a program."""
    assert language.compile is not None
    sandbox, tape = await workbench.fork(COMMAND.key), Tape()
    there = (InputFile(f"{BUILD_DIR}/.made", b""),)
    step = Step(command_words(language, language.compile.argv), language.file_name, code.encode(), files=there)
    try:
        end = await sandbox.exec(step, LIMITS, tape)
        assert end.exit_code == 0, bytes(tape.stderr)
        collected = await sandbox.collect(language.compile.artefacts, 1 << 20)
    finally:
        await sandbox.close()
    return tuple(InputFile(file.path, file.content, 0o755) for file in collected.files)


async def run(workbench: Workbench, language: Language, template: str, code: str, **change: object) -> Ran:
    if language.compile:
        change["files"] = await compiled(workbench, language, code)
    sandbox, tape = await workbench.fork(template), Tape()
    argv = command_words(language, language.argv) + change.pop("args", ())  # type: ignore[operator]
    env = language.env + change.pop("env", ())  # type: ignore[operator]
    text = (None, None) if language.compile else (language.file_name, code.encode())
    step = Step(argv, *text, env, STDIN, **change)  # type: ignore[arg-type]
    try:
        end = await sandbox.exec(step, LIMITS, tape)
    finally:
        await sandbox.close()
    return Ran(end, bytes(tape.stdout), bytes(tape.stderr))


def told(ran: Ran) -> tuple[bytes, bytes, int | None]:
    return VARIES.sub(b"<varies>", ran.stdout), VARIES.sub(b"<varies>", ran.stderr), ran.status


def test_every_language_that_goes_on_after_a_fork_is_compared_with_plain_runs() -> None:
    assert set(FORKED) == set(PROGRAMS) == {*RANDOM, *ALWAYS_THE_SAME}


@pytest.mark.parametrize(("name", "program"), CASES)
def test_a_program_does_what_it_does_in_a_plain_run(workbench: Workbench, name: str, program: str) -> None:
    language, code = offered(name), PROGRAMS[name][program]
    plain = workbench.wait(run(workbench, language, COMMAND.key, code))
    forked = workbench.wait(run(workbench, language, language.templates[0].key, code, warm=True))
    if (name, program) in DIFFERENCES:
        assert told(forked) != told(plain), "this difference is gone: the program belongs to the others"
    else:
        assert told(forked) == told(plain)


@pytest.mark.parametrize("name", [name for name, programs in PROGRAMS.items() if "arguments" in programs])
def test_a_program_with_arguments_and_variables_of_its_own_has_them(workbench: Workbench, name: str) -> None:
    language = offered(name)
    code = next(code for program, code in PROGRAMS[name].items() if program == "arguments")
    for change in ({"args": ("one", "two words")}, {"env": (("GIVEN", "väl=ue"),)}):
        plain = workbench.wait(run(workbench, language, COMMAND.key, code, **change))
        assert told(workbench.wait(run(workbench, language, language.templates[0].key, code, **change))) == told(plain)
        assert (b"two words" in plain.stdout or b"2" in plain.stdout) == ("args" in change)


@pytest.mark.parametrize("name", RANDOM)
def test_what_is_random_is_so_in_every_sandbox(workbench: Workbench, name: str) -> None:
    language = offered(name)
    runs = [
        workbench.wait(run(workbench, language, language.templates[0].key, RANDOM[name], warm=True)).stdout.split()
        for _ in range(3)
    ]
    assert len({len(words) for words in runs}) == 1
    assert len(runs[0]) > 1
    assert len({word for words in runs for word in words}) == sum(len(words) for words in runs)
