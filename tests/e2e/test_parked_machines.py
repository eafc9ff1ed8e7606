"""A program given to a JVM that waited for it does what it does in a plain run: same stdout, stderr, exit status.

The control is the same command line, executed in a sandbox of its own.
"""

from __future__ import annotations

import re

import pytest

from sandfork.engine.compilation import command_words, fill_memory
from sandfork.images.rooted import Rooted
from sandfork.languages.catalogue import COMMAND, Catalogue, Language
from sandfork.model import InputFile, Limits, Step
from sandfork.tiers.base import Collected
from tests.e2e.jvm_programs import RANDOM, SCRIPTS, SOURCES
from tests.support.process import Ran, Tape, Workbench

LIMITS = Limits(wall_s=50, cpu_s=50, pids=128)
ROOMY = Limits(wall_s=50, cpu_s=50, pids=128, memory_bytes=1 << 30)
STDIN = b"first line\nsecond \xc3\xa9\n\nlast"
CATALOGUE = Catalogue.load()
PARKED = {each.name: each for each in CATALOGUE.languages() if each.templates[0].park_at}
CLASS = re.compile(r"^(?:class|object|enum|interface) (\w+)", re.MULTILINE)
#: What differs between any two plain runs: hashes of objects, and lambdas that are made as they are met.
VARIES = re.compile(rb"0x[0-9a-f]{6,}|(?<=@)[0-9a-f]{5,8}\b|\$\$Lambda\$\w+/0x\w+")
#: Held by the test of what differs, so that the list in docs/concepts/interpreter.md stays true.
DIFFERENCES = {("clojure", "names made up after a plain call")}
CASES = [
    (name, program)
    for name, source in SOURCES.items()
    for program in (*CLASS.findall(source), "Nothing")
    if program != "Random_"
]
CASES += [(name, program) for name, programs in SCRIPTS.items() for program in programs]


def offered(name: str) -> Language:
    """Return an installed language, or skip the test saying what is missing."""
    if missing := PARKED[name].missing(Rooted().has):
        pytest.skip(f"{missing[0]} is not installed")
    return PARKED[name]


async def execute(workbench: Workbench, template: str, step: Step, limits: Limits = LIMITS, collect: str = "") -> Ran:
    sandbox, tape = await workbench.fork(template), Tape()
    try:
        end = await sandbox.exec(step, limits, tape)
        collected = await sandbox.collect((collect,), 1 << 24) if collect else Collected()
    finally:
        await sandbox.close()
    return Ran(end, bytes(tape.stdout), bytes(tape.stderr), collected)


_compiled: dict[str, tuple[InputFile, ...]] = {}


def compiled(workbench: Workbench, language: Language) -> tuple[InputFile, ...]:
    """Return the classes of all programs of a language, compiled once."""
    if language.compile is None:
        return ()
    if language.name not in _compiled:
        argv = fill_memory(command_words(language, language.compile.argv), ROOMY.memory_bytes)
        marker = InputFile(".build/.made", b"")
        step = Step(argv, language.file_name, SOURCES[language.name].encode(), (), b"", (marker,))
        ran = workbench.wait(execute(workbench, COMMAND.key, step, ROOMY, ".build/**/*"))
        assert ran.status == 0, ran.stderr.decode()
        _compiled[language.name] = tuple(InputFile(each.path, each.content) for each in ran.collected.files)
    return _compiled[language.name]


def run(
    workbench: Workbench,
    language: Language,
    template: str,
    program: str,
    args: tuple[str, ...] = (),
    env: tuple[tuple[str, str], ...] = (),
) -> Ran:
    argv = fill_memory(command_words(language, language.argv), LIMITS.memory_bytes)
    files = compiled(workbench, language)
    if files:
        argv, code = (*argv[:-1], program), None
    else:
        code = program.encode()
    step = Step((*argv, *args), language.file_name if code else None, code, env, STDIN, files)
    return workbench.wait(execute(workbench, template, step))


def told(ran: Ran) -> tuple[bytes, bytes, int | None]:
    return VARIES.sub(b"<varies>", ran.stdout), VARIES.sub(b"<varies>", ran.stderr), ran.status


def text_of(name: str, program: str) -> str:
    return SCRIPTS[name][program] if name in SCRIPTS else program


def test_every_language_that_waits_in_a_jvm_is_compared_with_plain_runs() -> None:
    assert set(PARKED) == set(SOURCES) | set(SCRIPTS)


@pytest.mark.parametrize(("name", "program"), CASES)
def test_a_program_does_what_it_does_in_a_plain_run(workbench: Workbench, name: str, program: str) -> None:
    language, text = offered(name), text_of(name, program)
    plain, parked = run(workbench, language, COMMAND.key, text), run(workbench, language, name, text)
    if (name, program) in DIFFERENCES:
        assert told(parked) != told(plain), "this difference is gone: the program belongs to the others"
    else:
        assert told(parked) == told(plain)


@pytest.mark.parametrize("name", PARKED)
def test_a_program_with_arguments_and_variables_of_its_own_has_them(workbench: Workbench, name: str) -> None:
    language = offered(name)
    for program in {"java": ("Arguments", "Variables"), "kotlin": ("Output",), "scala": ("Output",)}.get(
        name, ("arguments", "variables", "places")
    ):
        given = {"args": ("one", "two wörds", ""), "env": (("GIVEN", "väl=ue"), ("EMPTY", ""))}
        plain = run(workbench, language, COMMAND.key, text_of(name, program), **given)
        assert b"two w\xc3\xb6rds" in plain.stdout or b"v\xc3\xa4l=ue" in plain.stdout
        assert told(run(workbench, language, name, text_of(name, program), **given)) == told(plain)


@pytest.mark.parametrize("name", ["java", *RANDOM])
def test_what_is_random_is_so_in_every_sandbox(workbench: Workbench, name: str) -> None:
    language = offered(name)
    runs = [run(workbench, language, name, RANDOM.get(name, "Random_")).stdout.split() for _ in range(3)]
    assert len({len(words) for words in runs}) == 1
    assert len(runs[0]) > 1
    assert len({word for words in runs for word in words}) == sum(len(words) for words in runs)
