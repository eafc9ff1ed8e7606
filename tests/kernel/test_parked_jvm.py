"""A JVM that waits for its program: what cannot come up is executed as ever, and a limit it was not told of is kept."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from sandfork.engine.engine import Engine
from sandfork.errors import TemplateFailed
from sandfork.images.rooted import Rooted
from sandfork.languages.catalogue import Catalogue, Language
from sandfork.model import Caller, ExecRequest, LimitsOverride, Snippet
from tests.support.process import LIMITS, Workbench, open_workbench

CALLER = Caller("somebody")
TOLD = 'println "${Runtime.runtime.maxMemory() >> 20} ${System.getenv("TZ")} ${TimeZone.default.ID}"'


def groovy() -> Language:
    """Return the language as a service has it, or skip the test saying what is missing."""
    found = Catalogue.load().find("groovy")
    assert found is not None
    if missing := found.missing(Rooted().has):
        pytest.skip(f"{missing[0]} is not installed")
    return found.sized(LIMITS.memory_bytes)


@pytest.fixture
def broken(as_root: None) -> Iterator[tuple[Workbench, Catalogue]]:
    """A tier whose JVMs do not come up."""
    language = groovy()
    (spec,) = language.templates
    start = (spec.start[0], "-XX:+NoSuchOption", *spec.start[1:])
    catalogue = Catalogue([replace(language, templates=(replace(spec, start=start),))])
    with open_workbench(catalogue=catalogue) as workbench:
        yield workbench, catalogue


def test_one_that_does_not_come_up_is_no_template(broken: tuple[Workbench, Catalogue]) -> None:
    workbench, _ = broken
    with pytest.raises(TemplateFailed, match="template groovy: what it boots did not come up"):
        workbench.wait(workbench.tier.template("groovy"))


def test_a_program_whose_jvm_does_not_come_up_is_executed(broken: tuple[Workbench, Catalogue]) -> None:
    workbench, catalogue = broken
    engine = Engine(workbench.tier, catalogue, {"command": 0, "groovy": 0}, on_demand=["groovy"])
    request = ExecRequest(Snippet("groovy", "println 1 + 1"), limits=LimitsOverride(wall_s=30))
    assert workbench.wait(engine.execute(request, CALLER)).stdout == b"2\n"
    assert not next(each for each in engine.health() if each.key == "groovy").ready
    workbench.wait(engine.close())


def test_what_it_was_not_told_at_its_start_holds_for_the_program_all_the_same(workbench: Workbench) -> None:
    catalogue = Catalogue([groovy()])
    engine = Engine(workbench.tier, catalogue, {"command": 0, "groovy": 0})

    def told(limits: LimitsOverride, env: tuple[tuple[str, str], ...] = ()) -> list[str]:
        request = ExecRequest(Snippet("groovy", TOLD), env=env, limits=limits)
        result = workbench.wait(engine.execute(request, CALLER))
        return result.stdout.decode().split()

    usual, smaller = LimitsOverride(wall_s=30), LimitsOverride(wall_s=30, memory_bytes=256 << 20)
    usually, less = told(usual), told(smaller)
    assert 1.5 < int(usually[0]) / int(less[0]) < 2.5
    assert told(usual, (("TZ", "Europe/Berlin"),))[1:] == ["Europe/Berlin"] * 2
    assert int(told(usual, (("JAVA_TOOL_OPTIONS", "-Xmx100m"),))[0]) < 110
    workbench.wait(engine.close())
