"""What counts as proven: every check has an answer that passes and answers that do not."""

from __future__ import annotations

import pytest

from sandfork.languages.catalogue import Catalogue
from sandfork.languages.checks import BOOM, GREETING, LINES, OUTPUT_BYTES, STANDARD, WORDS, check_request, judge
from sandfork.languages.language import Check
from sandfork.model import ExecResult, Outcome, Snippet
from tests.support.stub_engine import ended

COMPILER = {"failed_step": "compile", "exit_code": 1}
GOOD: dict[str, ExecResult] = {
    "hello": ended(stdout=f"{GREETING}\n".encode()),
    "stdin": ended(stdout=LINES.encode()),
    "argv": ended(stdout="\n".join(WORDS).encode()),
    "error": ended(exit_code=1, stderr=f"Error: {BOOM}\n".encode()),
    "compile_error": ended(**COMPILER, stderr=b"main.c:1: error"),
    "wall": ended(outcome=Outcome.TIMED_OUT, exit_code=None, signal=9),
    "memory": ended(outcome=Outcome.OUT_OF_MEMORY, exit_code=None, signal=9),
    "output": ended(stdout=b"x" * OUTPUT_BYTES),
    "own": ended(stdout=b"42  \n\n"),
}
BAD = [
    ("hello", ended(stdout=b"Hello, W\xc3?rld")),
    ("hello", ended(stdout=GREETING.encode(), exit_code=1)),
    ("hello", ended(stdout=GREETING.encode(), outcome=Outcome.TIMED_OUT, exit_code=None, signal=9)),
    ("stdin", ended(stdout=LINES.replace("\n\n", "\n").encode())),
    ("argv", ended(stdout="\n".join(WORDS[:2]).encode())),
    ("error", ended(exit_code=0, stderr=BOOM.encode())),
    ("error", ended(exit_code=1, stderr=b"", stdout=BOOM.encode())),
    ("error", ended(**COMPILER, stderr=BOOM.encode())),
    ("error", ended(outcome=Outcome.TIMED_OUT, exit_code=None, signal=9, stderr=BOOM.encode())),
    ("compile_error", ended(exit_code=1, stderr=b"error")),
    ("compile_error", ended(**COMPILER, stdout=b"", stderr=b"")),
    ("compile_error", ended(outcome=Outcome.TIMED_OUT, **COMPILER, stderr=b"error")),
    ("wall", ended(exit_code=1)),
    ("wall", ended(outcome=Outcome.TIMED_OUT, failed_step="compile")),
    ("memory", ended(exit_code=0)),
    ("memory", ended(outcome=Outcome.TIMED_OUT, exit_code=None, signal=9)),
    ("memory", ended(outcome=Outcome.OUT_OF_MEMORY, failed_step="compile")),
    ("output", ended(stdout=b"x" * (OUTPUT_BYTES - 1))),
    ("own", ended(stdout=b"43")),
]


def made(name: str) -> Check:
    return Check(name, "code", stdout="42" if name == "own" else None)


@pytest.mark.parametrize("name", [*STANDARD, "own"])
def test_an_answer_that_is_right_proves_the_check(name: str) -> None:
    assert judge(made(name), GOOD[name]) == ""


@pytest.mark.parametrize(("name", "answer"), BAD)
def test_an_answer_that_is_wrong_is_told(name: str, answer: ExecResult) -> None:
    assert judge(made(name), answer)


def test_a_language_may_say_no_memory_by_itself() -> None:
    assert judge(made("memory"), ended(exit_code=1, stderr=b"MemoryError")) == ""


def test_a_check_is_asked_for_with_what_it_needs_and_what_its_file_gives_instead() -> None:
    lua = Catalogue.load().find("lua")
    assert lua is not None
    request = check_request(lua, Check("argv", "print(...)"))
    assert (request.program, request.args) == (Snippet("lua", "print(...)"), WORDS)
    assert check_request(lua, Check("argv", "", args=("x",))).args == ("x",)
    assert check_request(lua, Check("stdin", "")).stdin == LINES.encode()
    assert check_request(lua, Check("stdin", "", stdin="{}")).stdin == b"{}"
    assert check_request(lua, Check("wall", "")).limits.wall_s == 1.0
