"""Languages proven on this host: every check of a language's file, run in the real sandbox."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sandfork.engine.engine import Engine
from sandfork.errors import SandforkError
from sandfork.languages.catalogue import Language, TemplateKind
from sandfork.languages.checks import check_request, judge
from sandfork.languages.language import Check
from sandfork.model import Command, ExecRequest, LimitsOverride
from sandfork.serve_local import CALLER
from sandfork.serve_speed import Speed, measure

_VERSION = re.compile(r"\d+(\.\d+)+|\d{4,}")
_VERSION_S = 20.0


@dataclass(frozen=True, slots=True)
class Proof:
    """What came of a language's checks: `problems` are names of checks, or "time", and what went wrong."""

    language: Language
    version: str
    problems: tuple[tuple[str, str], ...]
    speed: Speed | None = None

    @property
    def kind(self) -> str:
        """How its programs come to run."""
        kind = self.language.templates[0].kind
        ways = (["compile"] if self.language.compile else []) + ["exec" if kind is TemplateKind.NONE else str(kind)]
        return ", ".join((*ways, *(["warm"] if self.language.warm_path else [])))

    @property
    def passed(self) -> int:
        """How many checks passed."""
        failed = {name for name, _ in self.problems}
        return sum(check.name not in failed for check in self.language.checks)


Tell = Callable[[str, str], None]
"""Told of what is done now: a language's name and the check."""


async def prove_all(engine: Engine, languages: Sequence[Language], runs: int, tell: Tell) -> list[Proof]:
    """Prove one language after the other; with `runs` measure each of those that hold, so many times."""
    return [await prove(engine, language, runs, tell) for language in languages]


async def prove(engine: Engine, language: Language, runs: int, tell: Tell) -> Proof:
    """Run every check of a language."""
    problems = []
    for check in language.checks:
        tell(language.name, check.name)
        problem = await _try(engine, language, check)
        if problem:
            problems.append((check.name, problem))
    speed = None
    if runs and not problems:
        tell(language.name, "time")
        try:
            speed = await measure(engine, language, runs)
        except RuntimeError as error:
            problems.append(("time", str(error)))
    return Proof(language, await find_version(engine, language), tuple(problems), speed)


async def find_version(engine: Engine, language: Language) -> str:
    """Return what a language's version command tells, "" when it has none or tells none."""
    if not language.version_argv:
        return ""
    request = ExecRequest(Command(language.version_argv), limits=LimitsOverride(wall_s=_VERSION_S))
    try:
        result = await engine.execute(request, CALLER)
    except SandforkError:
        return ""
    match = _VERSION.search((result.stdout + result.stderr).decode(errors="replace"))
    return match[0] if match else ""


async def _try(engine: Engine, language: Language, check: Check) -> str:
    try:
        result = await engine.execute(check_request(language, check), CALLER)
    except SandforkError as error:
        return f"{type(error).__name__}: {error}"
    return judge(check, result)
