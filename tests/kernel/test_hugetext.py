"""The interpreter of a sandbox lies in huge pages it shares with its zygote, and is the same interpreter."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.process import Workbench

HUGE = 2 << 20

# What of the sandbox's executable memory is no file's and as large as a huge page.
LOOK = f"""
import sys
with open('/proc/self/maps') as file:
    text = file.read()
fields = [line.split() for line in text.splitlines()]
executable = [f for f in fields if len(f) > 4 and f[1] == 'r-xp']
for f in executable:
    start, end = (int(x, 16) for x in f[0].split('-'))
    if f[4] == '0' and end - start >= {HUGE}: print('huge', start % {HUGE}, end % {HUGE})
"""


@pytest.fixture(autouse=True)
def _root(as_root: None) -> None:
    """Every test here starts processes as root."""


def test_whole_huge_pages_of_the_interpreters_text_are_huge_pages(workbench: Workbench) -> None:
    """The distribution's interpreter has some four megabytes of text and constants in one run."""
    lines = workbench.run(LOOK).stdout.decode().split("\n")
    huge = [line.split()[1:] for line in lines if line.startswith("huge")]
    if not Path("/sys/kernel/mm/transparent_hugepage").exists():
        assert not huge
        return
    assert huge
    assert all((start, end) == ("0", "0") for start, end in huge)


def test_a_program_that_writes_to_its_text_changes_no_other_sandbox(workbench: Workbench) -> None:
    """The function is one that nothing here calls."""
    look = """
import ctypes
text = ctypes.cast(ctypes.pythonapi.PySys_AddWarnOption, ctypes.c_void_p).value
"""
    write = """
assert ctypes.CDLL(None).mprotect(ctypes.c_void_p(text & -4096), ctypes.c_size_t(8192), 7) == 0
ctypes.memset(text, 0xCC, 16)
"""
    read = "print(ctypes.string_at(text, 16).hex())"
    before = workbench.run(look + read).stdout
    assert workbench.run(look + write + read).stdout == b"cc" * 16 + b"\n" != before
    assert workbench.run(look + read).stdout == before
