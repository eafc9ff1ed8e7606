"""What every language must do to be called supported, and whether it did.

A language's file holds a small program for each of `STANDARD`, or a reason why there can be none:

    hello          prints "Hello, Wörld ✓"
    stdin          copies stdin to stdout
    argv           prints each of its arguments on a line of its own
    error          fails by itself with a status other than 0, and "boom" in what it says on stderr
    compile_error  does not compile; the compiler says where, or what
    wall           never ends
    memory         takes memory without end
    output         prints one million times x

White space at the end of a line or of the whole does not count. A file may have further checks: a table with `code`,
`stdout` and, as wanted, `stdin` and `args`; such a table also serves where a standard check needs another input.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from sandfork.languages.language import Check, Language
from sandfork.model import ExecRequest, ExecResult, LimitsOverride, Outcome, Snippet

GREETING = "Hello, Wörld ✓"
LINES = "one\nzwei ü\n\n  drei\n"
WORDS = ("one", "zwei ü", "--three", "$HOME")
BOOM = "boom"
OUTPUT_BYTES = 1_000_000
PROVEN_S = 60.0
"""A check that takes longer fails."""
WALL_S = 1.0
_TIME = LimitsOverride(wall_s=PROVEN_S)

Judge = Callable[[Check, ExecResult], str]


@dataclass(frozen=True, slots=True)
class Expectation:
    """What is given to a check's program, and what says whether it did well: "" or what is wrong."""

    judge: Judge
    stdin: str = ""
    args: tuple[str, ...] = ()
    limits: LimitsOverride = _TIME
    of_compilers: bool = False


def prints(text: str) -> Judge:
    """Return the judge of a program that prints `text`, unless the check names another, and ends with 0."""

    def judge(check: Check, result: ExecResult) -> str:
        wanted = text if check.stdout is None else check.stdout
        if result.outcome is not Outcome.EXITED or result.exit_code != 0:
            return _told(result)
        got = result.stdout.decode(errors="replace")
        return "" if _lines(got) == _lines(wanted) else f"printed {got[:200]!r} instead of {wanted[:200]!r}"

    return judge


def _lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _told(result: ExecResult) -> str:
    """Say how a program ended, with the end of what it said."""
    where = f"{result.failed_step} " if result.failed_step else ""
    said = (result.stderr or result.stdout).decode(errors="replace").strip()
    return f"{where}{result.outcome} with status {result.status}: {said[-300:] or 'not a word'}"


def _fails_with_a_word(check: Check, result: ExecResult) -> str:
    by_itself = result.outcome in (Outcome.EXITED, Outcome.SIGNALLED)
    if not by_itself or result.status == 0 or result.failed_step:
        return _told(result)
    return "" if BOOM in result.stderr.decode(errors="replace") else f"nothing of {BOOM!r} on stderr; {_told(result)}"


def _does_not_compile(check: Check, result: ExecResult) -> str:
    if result.failed_step != "compile" or result.outcome is not Outcome.EXITED or result.status == 0:
        return f"not refused by the compiler: {_told(result)}"
    return "" if (result.stdout + result.stderr).strip() else "the compiler said nothing"


def _runs_out_of_time(check: Check, result: ExecResult) -> str:
    return "" if result.outcome is Outcome.TIMED_OUT and not result.failed_step else _told(result)


def _runs_out_of_memory(check: Check, result: ExecResult) -> str:
    """A language's own word on it, which comes as a status, is as good as the kernel's."""
    fits = result.outcome is Outcome.OUT_OF_MEMORY
    own = result.outcome in (Outcome.EXITED, Outcome.SIGNALLED) and result.status != 0
    return "" if (fits or own) and not result.failed_step else _told(result)


STANDARD: dict[str, Expectation] = {
    "hello": Expectation(prints(GREETING)),
    "stdin": Expectation(prints(LINES), stdin=LINES),
    "argv": Expectation(prints("\n".join(WORDS)), args=WORDS),
    "error": Expectation(_fails_with_a_word),
    "compile_error": Expectation(_does_not_compile, of_compilers=True),
    "wall": Expectation(_runs_out_of_time, limits=LimitsOverride(wall_s=WALL_S)),
    "memory": Expectation(_runs_out_of_memory),
    "output": Expectation(prints("x" * OUTPUT_BYTES), limits=LimitsOverride(wall_s=PROVEN_S, output_bytes=2 << 20)),
}
_OF_ONES_OWN = Expectation(prints(""))


def check_request(language: Language, check: Check) -> ExecRequest:
    """Return the execution that a check asks for."""
    expected = STANDARD.get(check.name, _OF_ONES_OWN)
    stdin = expected.stdin if check.stdin is None else check.stdin
    return ExecRequest(
        Snippet(language.name, check.code),
        stdin=stdin.encode(),
        args=check.args or expected.args,
        limits=expected.limits,
    )


def judge(check: Check, result: ExecResult) -> str:
    """Return "" when the program did what it must, else what it did instead."""
    return STANDARD.get(check.name, _OF_ONES_OWN).judge(check, result)
