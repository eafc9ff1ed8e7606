"""Which module may import which: the table of ARCHITECTURE.md, one test a rule.

A rule is a function from a module to its violations. Each is run over the whole package, and over an invented
module that breaks it, so that a rule that finds nothing is not one that cannot find anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.style.source import Module, imports, invented, modules

#: From top to bottom. Modules of a row import only from rows below, or from their own component.
ROWS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("serve", "bench"),
    ("http",),
    ("engine",),
    ("dialects",),
    ("tiers",),
    ("linux", "languages", "images"),
    ("access", "metrics", "config"),
    ("model", "errors"),
)
#: Stand beside the table: they import nothing of sandfork.
ALONE = ("guest", "native", "policy", "client")
#: Parts of which each module is an adapter of its own: siblings share only these.
SHARED_BY_SIBLINGS = {"dialects": ("base", "fields", "refusals", "actions"), "tiers": ("base",)}
PURE = ("dialects",)
IMPURE_MODULES = {"asyncio", "os", "pathlib", "random", "secrets", "socket", "subprocess", "threading", "time", "uuid"}

Rule = Callable[[Module], Iterator[str]]


def component(name: str) -> str:
    """Return the part of the package a module belongs to: sandfork.http.app is of "http", cli_keys of "cli"."""
    parts = name.split(".")
    return "" if len(parts) == 1 else parts[1].split("_")[0] if parts[1] != "__main__" else "__main__"


def row(part: str) -> int | None:
    return next((index for index, names in enumerate(ROWS) if part in names), None)


def inner_imports(module: Module) -> Iterator[tuple[int, str]]:
    """Yield the imports of `module` that are parts of this package; its version is none."""
    for line, name in imports(module):
        if name.startswith("sandfork.") and name != "sandfork.__version__":
            yield line, name


def imports_only_from_below(module: Module) -> Iterator[str]:
    own = component(module.name)
    for line, name in inner_imports(module):
        other = component(name)
        if not own or other == own:
            continue
        here, there = row(own), row(other)
        if here is None or there is None or there < here or (there == here and own not in ("model", "errors")):
            yield f"{module.relative}:{line}: {own} imports {name}"


def belongs_to_the_table(module: Module) -> Iterator[str]:
    own = component(module.name)
    if own and row(own) is None and own not in ALONE:
        yield f"{module.relative}: {own} is in no row of the table of layers"


def siblings_stay_apart(module: Module) -> Iterator[str]:
    own = component(module.name)
    if own not in SHARED_BY_SIBLINGS:
        return
    for line, name in inner_imports(module):
        if component(name) == own and adapter(name) not in (adapter(module.name), "", *SHARED_BY_SIBLINGS[own]):
            yield f"{module.relative}:{line}: {adapter(module.name)} imports its sibling {name}"


def adapter(name: str) -> str:
    """Return which adapter a module is part of: sandfork.tiers.process_slots is of "process"."""
    parts = name.split(".")
    return parts[2].split("_")[0] if len(parts) > 2 else ""


def names_no_concrete_tier(module: Module) -> Iterator[str]:
    if component(module.name) in ("serve", "cli", "tiers"):
        return
    for line, name in inner_imports(module):
        if component(name) == "tiers" and adapter(name) not in ("base", ""):
            yield f"{module.relative}:{line}: only serve names concrete tiers, here {name}"


def leaves_the_configuration_to_serve(module: Module) -> Iterator[str]:
    if component(module.name) in ("serve", "cli", "bench", "config"):
        return
    for line, name in inner_imports(module):
        if component(name) == "config":
            yield f"{module.relative}:{line}: takes its settings from serve, not from {name}"


def stands_alone(module: Module) -> Iterator[str]:
    own = component(module.name)
    if own not in ALONE:
        return
    for line, name in inner_imports(module):
        if component(name) != own:
            yield f"{module.relative}:{line}: {own} imports {name}, and must import nothing of sandfork"


def linux_is_synchronous(module: Module) -> Iterator[str]:
    if component(module.name) in ("linux", "guest"):
        yield from _forbid(module, {"asyncio"}, "is synchronous")


def dialects_are_pure(module: Module) -> Iterator[str]:
    if component(module.name) in PURE:
        yield from _forbid(module, IMPURE_MODULES, "does no I/O and reads no clock")


def nouns_need_only_the_standard_library(module: Module) -> Iterator[str]:
    if component(module.name) in ("model", "errors"):
        yield from _forbid(module, {"sandfork", "msgspec", "starlette"}, "imports the standard library only")


def guest_needs_only_the_standard_library(module: Module) -> Iterator[str]:
    if component(module.name) in ("guest", "native"):
        yield from _forbid(module, {"msgspec", "starlette", "uvloop", "typer", "rich"}, "runs without any package")


def _forbid(module: Module, names: set[str], reason: str) -> Iterator[str]:
    for line, name in imports(module):
        if name.partition(".")[0] in names:
            yield f"{module.relative}:{line}: {reason}, but imports {name}"


RULES: tuple[tuple[Rule, str, str], ...] = (
    (imports_only_from_below, "sandfork.engine.pool", "from sandfork.http.app import build_app"),
    (imports_only_from_below, "sandfork.access", "import sandfork.config"),
    (belongs_to_the_table, "sandfork.stuff", ""),
    (siblings_stay_apart, "sandfork.dialects.isol8", "from sandfork.dialects.faber import parse"),
    (siblings_stay_apart, "sandfork.tiers.fake", "from sandfork.tiers import process"),
    (names_no_concrete_tier, "sandfork.engine.engine", "from sandfork.tiers.fake import FakeTier"),
    (leaves_the_configuration_to_serve, "sandfork.http.app", "from sandfork.config import Config"),
    (stands_alone, "sandfork.guest.agent", "from sandfork.model import Limits"),
    (stands_alone, "sandfork.client", "from sandfork.errors import SandforkError"),
    (linux_is_synchronous, "sandfork.linux.cgroup", "import asyncio"),
    (dialects_are_pure, "sandfork.dialects.faber", "from time import monotonic"),
    (nouns_need_only_the_standard_library, "sandfork.model", "import msgspec"),
    (guest_needs_only_the_standard_library, "sandfork.guest.agent", "import msgspec"),
)


@pytest.mark.parametrize("rule", dict.fromkeys(rule for rule, _, _ in RULES), ids=lambda rule: rule.__name__)
def test_every_module_keeps_the_rule(rule: Rule) -> None:
    assert [violation for module in modules() for violation in rule(module)] == []


@pytest.mark.parametrize(("rule", "name", "text"), RULES, ids=lambda value: getattr(value, "__name__", ""))
def test_the_rule_refuses_a_module_that_breaks_it(rule: Rule, name: str, text: str) -> None:
    assert list(rule(invented(name, text)))


def test_the_package_is_found() -> None:
    assert {"sandfork.model", "sandfork.tiers.base", "sandfork.config.schema"} <= {each.name for each in modules()}
