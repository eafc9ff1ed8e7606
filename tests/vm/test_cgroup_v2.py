"""The process tier on a host with cgroup v2 only: a real kernel in a guest, one test here for each that runs inside."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.vm.machine import GuestRun, boot, parse

TESTS = Path(__file__).parents[1]
INSIDE = ("vm/inside/process_tier.py", "kernel/test_limits.py", "kernel/test_cpus.py", "kernel/test_joining.py")


def names_inside() -> list[str]:
    """Return the tests that must run inside, by file and name. Those of the whole service run on the host only."""
    return [
        f"tests/{file}::{node.name}"
        for file in INSIDE
        for node in ast.parse((TESTS / file).read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        if all(argument.arg != "service" for argument in node.args.args)
    ]


def tail(guest: GuestRun) -> str:
    """Return the end of what the guest said on its console."""
    return guest.console[-4000:]


@pytest.mark.parametrize("name", names_inside(), ids=lambda name: name.partition("::")[2])
def test_inside_the_guest(name: str, guest: GuestRun) -> None:
    verdicts = guest.verdicts.get(name, [])
    assert verdicts, "the guest never ran it; the test of its end shows its console"
    for verdict in verdicts:
        assert verdict.outcome == "passed", verdict.text


def test_the_guest_ran_to_its_end_and_powered_itself_off(guest: GuestRun) -> None:
    assert guest.in_time, tail(guest)
    assert guest.verdicts.keys() == set(names_inside()), tail(guest)
    assert guest.ended is not None, tail(guest)
    assert "Power down" in guest.console


def test_a_guest_that_dies_is_not_taken_for_one_that_passed(disk: Path, tmp_path: Path) -> None:
    dead = boot(disk, tmp_path, init="/nothing/here.py", deadline_s=240.0)
    assert (dead.verdicts, dead.ended, dead.in_time) == ({}, None, True)
    assert "Attempted to kill init" in dead.console


def test_a_guest_that_hangs_is_ended_at_its_deadline(disk: Path, tmp_path: Path) -> None:
    hung = boot(disk, tmp_path, deadline_s=0.5)
    assert (hung.ended, hung.in_time) == (None, False)


def test_a_line_cut_off_by_the_end_of_the_guest_is_no_verdict() -> None:
    whole = b'{"test": "test_a[x]", "outcome": "failed", "seconds": 1.0, "text": "why"}\r\n'
    verdicts, end = parse(whole + b'{"test": "test_b", "outco')
    assert {name: [v.outcome for v in those] for name, those in verdicts.items()} == {"test_a": ["failed"]}
    assert end == {}
