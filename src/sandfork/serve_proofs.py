"""Languages proven on this host or on its images: every check of a language's file, run in the real sandbox."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from sandfork.config import Config, Loaded
from sandfork.engine.engine import Engine
from sandfork.errors import SandforkError
from sandfork.languages.catalogue import Catalogue, Language, TemplateKind
from sandfork.languages.checks import check_request, judge
from sandfork.languages.language import Check
from sandfork.model import Command, ExecRequest, LimitsOverride
from sandfork.serve_engine import choose_languages
from sandfork.serve_images import chosen_images, exists_on
from sandfork.serve_languages import find_language, load_catalogue
from sandfork.serve_local import CALLER
from sandfork.serve_refusal import Refused
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
    def place(self) -> str:
        """What its programs ran on."""
        name, _, digest = self.language.image.partition("@")
        return f"{name} {digest[:19]}" if name else "host"

    @property
    def passed(self) -> int:
        """How many checks passed."""
        failed = {name for name, _ in self.problems}
        return sum(check.name not in failed for check in self.language.checks)


Tell = Callable[[str, str], None]
"""Told of what is done now: a language's name and the check."""


def choose_proven(loaded: Loaded, names: Sequence[str], on_image: bool | None) -> tuple[Loaded, Catalogue]:
    """Return the languages to prove, all that are there if none is named, and the settings to do so with.

    They are on their images only, or on the host's files only, or, with None, where a service would run each. Which
    languages a service offers makes no difference. *Raises* Refused for one that is not there, ImageError.
    """
    config = replace(loaded.config, languages=replace(loaded.config.languages, enable=()))
    if on_image is not None:
        config = replace(config, images=replace(config.images, use=on_image, host=()))
    every, there = load_catalogue(config), choose_languages(config)
    wanted = {find_language(every, name).name for name in names}
    for name in sorted(wanted):
        _refuse_absent(config, every, there, name, on_image=bool(on_image))
    chosen = there.only(lambda each: (not wanted or each.name in wanted) and bool(each.image or not on_image))
    if not chosen.names():
        raise Refused("no language has an image here" if on_image else "no language is installed here")
    return replace(loaded, config=config), chosen


def _refuse_absent(config: Config, every: Catalogue, there: Catalogue, name: str, *, on_image: bool) -> None:
    found, images = there.find(name), chosen_images(config)
    if on_image and name not in images:
        raise Refused(f"{name} has no image here: `sandfork rootfs build {name}` makes one")
    if found is None:
        missing = ", ".join(find_language(every, name).missing(exists_on(config, images)(name)))
        if name in images:
            raise Refused(f"{name}: there is no {missing} on image {images[name].name}")
        raise Refused(f"{name}: there is no {missing}: try `sandfork lang install {name}`")


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
    limits = LimitsOverride(wall_s=_VERSION_S)
    request = ExecRequest(Command(language.version_argv), template=language.commands.key, limits=limits)
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
