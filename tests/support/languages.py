"""Texts of a language that nobody ships, for tests of what reads them."""

from __future__ import annotations

#: All that a language must have shown of itself, none of it a program.
CHECKS = """
[checks]
hello = "1"
stdin = "2"
argv = "3"
error = "4"
wall = "5"
memory = "6"
output = "7"
"""


def language_text(program: str, *lines: str, name: str = "zog") -> str:
    """Return the text of a language whose files end in its name and are given to `program`; `lines` say more of it."""
    keys = (
        f'name = "{name}"',
        f'extension = ".{name}"',
        f'file_name = "main.{name}"',
        f'argv = ["{program}", "{{file}}"]',
    )
    return "\n".join((*keys, *lines)) + CHECKS
