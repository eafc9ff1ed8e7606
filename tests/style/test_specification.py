"""SPECIFICATION.md names tests that exist, for every promise."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAME = re.compile(r"`(test_\w+)`")
PROMISE = re.compile(r"^(\d+)\. ", re.MULTILINE)


def promises() -> dict[int, str]:
    """Return the text of each promise by its number."""
    parts = PROMISE.split((ROOT / "SPECIFICATION.md").read_text())
    return {int(number): text for number, text in zip(parts[1::2], parts[2::2], strict=True)}


def test_every_promise_names_tests_that_are_there() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("test_*.py"))
    there = set(re.findall(r"^(?:async )?def (test_\w+)", code, re.MULTILINE))
    for number, text in promises().items():
        named = set(NAME.findall(text))
        assert named, f"promise {number} names no test"
        assert named <= there, f"promise {number} names {named - there}"


def test_the_promises_are_numbered_without_a_gap() -> None:
    assert list(promises()) == list(range(1, len(promises()) + 1))
