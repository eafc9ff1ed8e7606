"""SECURITY.md names tests: each must be there, and none of tests/security may be missing from it."""

from __future__ import annotations

import ast
import re

from tests.style.source import ROOT, Module, invented, modules_of_tests

NAMED = re.compile(r"`(test_\w+)`")


def named() -> list[str]:
    """Return the tests that SECURITY.md names, in order."""
    return NAMED.findall((ROOT / "SECURITY.md").read_text())


def defined_tests(module: Module) -> set[str]:
    """Return the names of a module's tests."""
    return {
        node.name
        for node in ast.walk(module.tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def test_every_test_that_the_document_names_is_there() -> None:
    there = set().union(*map(defined_tests, modules_of_tests()))
    assert [name for name in named() if name not in there] == []


def test_every_security_test_is_named_in_the_document() -> None:
    made = set().union(*(defined_tests(m) for m in modules_of_tests() if m.name.startswith("tests.security.")))
    assert made
    assert sorted(made - set(named())) == []


def test_every_claim_names_a_test() -> None:
    """A row of a table of claims has a test in its second cell; the table of zones has no claims."""
    claims = (ROOT / "SECURITY.md").read_text().partition("## Claims")[2].partition("## Known leaks")[0]
    rows = [line for line in claims.splitlines() if line.startswith("| ") and not line.startswith("| claim")]
    assert len(rows) > 30
    assert [row for row in rows if not NAMED.search(row.split(" | ")[1])] == []


def test_a_name_that_is_nowhere_would_be_missed() -> None:
    assert NAMED.findall("| claim | `test_that_is_not_there` |") == ["test_that_is_not_there"]
    assert defined_tests(invented("tests.security.test_x", "def test_a_b_c_d(): ...")) == {"test_a_b_c_d"}
