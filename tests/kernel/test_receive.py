"""Programs of any size reach the interpreter whole, though zygote.so takes them from the socket."""

from __future__ import annotations

import pytest

from sandfork.model import Limits, Outcome
from tests.support.process import Workbench

SHORT = 16384  # RUN_SHORT of native/receive.h
LOOK = "print(len(open(__file__).read()), __file__)\n"


@pytest.fixture(autouse=True)
def _root(as_root: None) -> None:
    """Every test here starts processes as root."""


def of_length(size: int) -> str:
    """Return a program of that size that tells its own."""
    return LOOK + "#" * (size - len(LOOK))


@pytest.mark.parametrize("size", [len(LOOK), *range(SHORT - 160, SHORT + 8, 8), SHORT * 4, 1 << 20])
def test_a_program_of_any_size_runs_whole(workbench: Workbench, size: int) -> None:
    ran = workbench.run(of_length(size))
    assert (ran.stdout, ran.stderr) == (f"{size} /sandbox/main.py\n".encode(), b"")


def test_a_long_program_is_not_kept_beside_its_text(workbench: Workbench) -> None:
    """It lies in memory of its own while it is received, which is given back before the program begins."""
    size = 8 << 20
    code = f"""
def size(line):
    start, end = (int(x, 16) for x in line.split()[0].split('-'))
    return end - start
found = open('/proc/self/maps')
print([l for l in found if 'rw-p' in l and l.endswith(' 0 \\n') and {size} <= size(l) < {size + 8192}])
"""
    ran = workbench.run(code + "#" * (size - len(code)))
    assert ran.stdout.count(b"rw-p") == 1  # the text itself


def test_a_program_whose_file_does_not_fit_ends_at_its_disk_limit(workbench: Workbench) -> None:
    ran = workbench.run(of_length(1 << 20), limits=Limits(disk_bytes=1 << 16))
    assert ran.end.outcome is Outcome.DISK_LIMIT
    assert b"main.py" in ran.stderr
