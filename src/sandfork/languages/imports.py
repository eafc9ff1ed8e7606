"""Which modules a Python source imports, without parsing it.

The answer only chooses between templates that both run the program correctly, so a miss (`__import__("numpy")`, a line
continued with a backslash) costs time and nothing else, and the same holds for an import statement inside a string.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

SCAN_CHARS = 1 << 16
"""How much of a program is looked at; bounds what a megabyte of hostile text can cost (a few milliseconds)."""

_ITEM = r"[\w.]+(?:[ \t]+as[ \t]+\w+)?"


def compile_scan(modules: Iterable[str]) -> Callable[[str], bool]:
    """Return a function that tells whether a source has an import statement naming one of `modules`.

    A plain substring test comes first, so a program without the words costs well under a microsecond.
    """
    words = tuple(modules)
    names = "|".join(re.escape(word) for word in words)
    statement = re.compile(
        rf"(?:^|[;:])[ \t]*(?:from[ \t]+|import[ \t]+(?:{_ITEM}[ \t]*,[ \t]*)*)(?:{names})(?![\w])", re.MULTILINE
    )

    def imports(code: str) -> bool:
        for word in words:
            if word in code:
                return statement.search(code, 0, SCAN_CHARS) is not None
        return False

    return imports
