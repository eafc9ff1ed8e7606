"""A dozen languages of every kind, proven on their real toolchains in the real sandbox, check by check.

`./dev test languages` proves every language that is installed, and measures them.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sandfork.engine.engine import Engine
from sandfork.images.rooted import Rooted
from sandfork.languages.catalogue import Catalogue
from sandfork.languages.checks import check_request, judge
from sandfork.languages.language import Check
from sandfork.model import Caller
from sandfork.serve_proofs import find_version
from tests.support.process import Workbench

CALLER = Caller("somebody")
CATALOGUE = Catalogue.load()
#: Forked, parked and started anew, compiled or not; from Debian and from npm; small to install.
REPRESENTATIVE = (
    "awk", "bash", "c", "cpp", "jq", "lua", "node", "perl", "python", "sh", "sqlite", "tcl", "typescript",
)  # fmt: skip
PROOFS = [
    (name, check)
    for name in REPRESENTATIVE
    for language in (CATALOGUE.find(name),)
    if language is not None
    for check in language.checks
]


@pytest.fixture(scope="module")
def engine(workbench: Workbench) -> Iterator[Engine]:
    """An engine that forks on demand, over the tier that all tests share."""
    made = Engine(workbench.tier, CATALOGUE, dict.fromkeys((spec.key for spec in CATALOGUE.templates()), 0))
    workbench.wait(made.start())
    yield made
    workbench.wait(made.close())


def installed(name: str) -> None:
    """Skip, by name, what this host has no toolchain for."""
    language = CATALOGUE.find(name)
    assert language is not None
    if missing := language.missing(Rooted().has):
        pytest.skip(f"{name}: there is no {missing[0]}: sandfork lang install {name}")


@pytest.mark.parametrize(("name", "check"), PROOFS, ids=[f"{name}-{check.name}" for name, check in PROOFS])
def test_a_language_does_what_every_language_must(
    workbench: Workbench, engine: Engine, name: str, check: Check
) -> None:
    installed(name)
    language = CATALOGUE.find(name)
    assert language is not None
    result = workbench.wait(engine.execute(check_request(language, check), CALLER))
    assert judge(check, result) == ""


@pytest.mark.parametrize("name", [name for name in REPRESENTATIVE if name != "sh"])
def test_a_language_tells_its_version(workbench: Workbench, engine: Engine, name: str) -> None:
    installed(name)
    language = CATALOGUE.find(name)
    assert language is not None
    assert workbench.wait(find_version(engine, language))
