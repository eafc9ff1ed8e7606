"""What this host offers a service: facts, every isolation primitive after an attempt to break it, every template.

The primitives are tried by starting the tier as the service would, with its start-up self-test; nothing is listened
on and nothing is left. What is told here and what a start refuses can therefore not disagree.
"""

from __future__ import annotations

import asyncio
import os
import platform
import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

import uvloop

from sandfork.config import Config, Machine
from sandfork.errors import SandforkError
from sandfork.languages.catalogue import Catalogue
from sandfork.linux.cgroup import host_cgroups
from sandfork.linux.landlock import landlock_abi
from sandfork.serve_engine import choose_languages
from sandfork.serve_images import chosen_images, exists_on
from sandfork.serve_languages import load_catalogue
from sandfork.serve_tier import fitting_sandboxes, guest_packages, open_tier, unenforced
from sandfork.tiers.base import Tier
from sandfork.tiers.process import ProcessTier

TEMPLATE_S = 60.0


class State(StrEnum):
    """How a check came out. `FACT` judges nothing; `ACCEPTED` is missing by the configuration's leave."""

    FACT = "fact"
    HELD = "ok"
    ACCEPTED = "accepted"
    MISSING = "missing"


@dataclass(frozen=True, slots=True)
class Check:
    """One line of the report."""

    area: str
    name: str
    state: State
    told: str = ""


def examine(config: Config, tier_name: str) -> list[Check]:
    """Return the report. As root this gives root up, as a start does. *Raises* Refused for unusable settings."""
    checks = [*host_facts(), *language_checks(config)]
    catalogue = choose_languages(config)
    try:
        tier = open_tier(config, catalogue, tier_name)
    except SandforkError as error:
        return [*checks, Check("tier", tier_name, State.MISSING, error.message)]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return [*checks, *runner.run(_examine_tier(tier, catalogue, config, tier_name))]


def host_facts() -> Iterator[Check]:
    """Yield what this machine is; nothing here decides whether the service starts."""
    host, abi = host_cgroups(), landlock_abi()
    files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    facts = {
        "kernel": f"{platform.release()} {platform.machine()}",
        "machine": Machine.probe().describe(),
        "python": f"{platform.python_version()} of the service",
        "user": "root" if os.geteuid() == 0 else f"uid {os.geteuid()}, not root",
        "cgroups": ", ".join(f"{h.name} at {h.mount}" for h in host.hierarchies) or "none",
        "landlock": f"ABI {abi.version}" if abi.version else "none",
        "open files": f"{files}, enough for {fitting_sandboxes(files)} sandboxes",
    }
    for name, told in facts.items():
        yield Check("host", name, State.FACT, told)


def language_checks(config: Config) -> Iterator[Check]:
    """Yield which languages of the catalogue this host can run."""
    images = chosen_images(config)
    exists = exists_on(config, images)
    for language in load_catalogue(config).languages():
        missing = language.missing(exists(language.name))
        image = images.get(language.name)
        told = f"{missing[0]} is not installed" if missing else language.programs[0]
        if image is not None:
            told += f" of image {image.name} ({image.digest[:19]})"
        yield Check("language", language.name, State.MISSING if missing else State.HELD, told)
    packages = guest_packages(config)
    told = str(packages) if packages else "none: programs have the standard library and what the system has"
    yield Check("language", "python packages", State.FACT, told)


def is_fatal(checks: Sequence[Check]) -> bool:
    """Say whether the service would not start here; a language or a single template that is missing is not offered."""
    templates = [check.state for check in checks if check.area == "template"]
    tier_missing = any(check.area == "tier" and check.state is State.MISSING for check in checks)
    return tier_missing or all(state is State.MISSING for state in templates)


async def _examine_tier(tier: Tier, catalogue: Catalogue, config: Config, name: str) -> list[Check]:
    try:
        refusal = None
        try:
            await tier.start()
        except SandforkError as error:
            refusal = error.message
        checks = [
            Check("primitive", each, _judge(problem, each, config, tier), problem)
            for each, problem in _primitives(tier).items()
        ]
        if refusal is not None:
            return [*checks, Check("tier", name, State.MISSING, refusal)]
        accepted = ", ".join(unenforced(tier))
        told = f"starts; cannot enforce {accepted}" if accepted else "starts and enforces every limit"
        checks.append(Check("tier", name, State.ACCEPTED if accepted else State.HELD, told))
        return checks + [await _check_template(tier, spec.key) for spec in catalogue.templates()]
    finally:
        await tier.close()


def _primitives(tier: Tier) -> dict[str, str]:
    """Return what the self-test tried, each with what went wrong or ""."""
    return dict(sorted(tier.primitives.items())) if isinstance(tier, ProcessTier) else {}


def _judge(problem: str, name: str, config: Config, tier: Tier) -> State:
    if not problem:
        return State.HELD
    return State.ACCEPTED if name in (*config.process.allow_missing, *unenforced(tier)) else State.MISSING


async def _check_template(tier: Tier, key: str) -> Check:
    try:
        async with asyncio.timeout(TEMPLATE_S):
            health = (await tier.template(key)).health()
    except TimeoutError:
        return Check("template", key, State.MISSING, f"not warm after {TEMPLATE_S:g} s")
    except SandforkError as error:
        return Check("template", key, State.MISSING, error.message)
    told = f"warm, {health.memory_bytes / (1 << 20):.1f} MiB" if health.ready else health.reason
    return Check("template", key, State.HELD if health.ready else State.MISSING, told)
