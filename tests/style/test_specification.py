"""Every promise of SPECIFICATION.md is numbered and names tests that exist; every kind of test serves some promise."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from tests.style.source import ROOT

SPECIFICATION = ROOT / "SPECIFICATION.md"
#: Directories of which every file must be named by some promise: these tests are about the whole, not about parts.
PROMISED = ("contract", "conformance", "e2e", "kernel", "property", "security")

TEST = re.compile(r"- `(tests/[\w/]+\.py)::(test_\w+)`")


def promises(text: str) -> list[tuple[int, int, str, list[tuple[str, str]]]]:
    """Return section, number, words and tests of every promise."""
    found = []
    for part in re.split(r"^(?=\*\*\d+\.\d+\*\* )", text, flags=re.MULTILINE)[1:]:
        head, _, rest = part.partition("- `")
        match = re.match(r"\*\*(\d+)\.(\d+)\*\* (.+)", head, re.DOTALL)
        assert match is not None, part
        tests = TEST.findall("- `" + rest)
        found.append((int(match[1]), int(match[2]), match[3].strip(), tests))
    return found


def names_in(path: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_")
    }


def faults(text: str) -> list[str]:
    """Return what is wrong with a specification."""
    found, expected = [], (1, 1)
    seen: dict[str, set[str]] = {}
    for section, number, words, tests in promises(text):
        if (section, number) not in (expected, (expected[0] + 1, 1)):
            found.append(f"{section}.{number} comes where {expected[0]}.{expected[1]} should")
        expected = (section, number + 1)
        if len(words) < 20:
            found.append(f"{section}.{number} says too little")
        if not tests:
            found.append(f"{section}.{number} names no test")
        for name, test in tests:
            path = ROOT / name
            if name not in seen:
                seen[name] = names_in(path) if path.is_file() else set()
            if test not in seen[name]:
                found.append(f"{section}.{number}: there is no {name}::{test}")
    return found


def test_every_promise_is_numbered_and_names_tests_that_exist() -> None:
    assert faults(SPECIFICATION.read_text()) == []


def test_every_file_about_what_is_promised_is_named_by_a_promise() -> None:
    named = {name for *_, tests in promises(SPECIFICATION.read_text()) for name, _ in tests}
    files = {str(p.relative_to(ROOT)) for kind in PROMISED for p in (ROOT / "tests" / kind).glob("test_*.py")}
    assert files <= named, sorted(files - named)


def test_every_section_has_promises_in_its_own_numbers() -> None:
    text = SPECIFICATION.read_text()
    headings = [int(n) for n in re.findall(r"^## (\d+)\. ", text, re.MULTILINE)]
    assert headings == list(range(1, len(headings) + 1))
    assert {section for section, *_ in promises(text)} == set(headings)


def test_a_wrong_specification_is_found_out() -> None:
    here = "tests/style/test_specification.py::test_a_wrong_specification_is_found_out"
    good = f"**1.1** A promise that says enough.\n\n- `{here}`\n"
    assert faults(good) == []
    assert faults(good + "**1.3** A promise that says enough.\n") == ["1.3 comes where 1.2 should", "1.3 names no test"]
    assert faults(good.replace("found_out`", "gone`")) != []
    assert faults(good.replace("that says enough", "")) == ["1.1 says too little"]
