"""A first draft of a language's file, to be filled in."""

from __future__ import annotations

import tomllib

from sandfork.languages.parsing import parse_language
from sandfork.languages.tables import CatalogueError

_DRAFT = """\
# Every key is explained in sandfork/languages/parsing.py, every check in sandfork/languages/checks.py.
name = "{name}"
aliases = []
extension = ".{name}"
file_name = "main.{name}"
argv = ["/usr/bin/{name}", "{{file}}"]
version = ["/usr/bin/{name}", "--version"]
packages = {{ debian = ["{name}"], npm = [], pypi = [] }}

# For a compiled language; then argv = ["{{out}}"], and a check `compile_error` below.
# [compile]
# argv = ["/usr/bin/{name}", "-o", "{{out}}", "{{name}}"]
# limits = {{ wall_s = 30, memory_bytes = "1g" }}

# A reason for each check that the language cannot have.
[without]

[checks]
hello = '''print "Hello, Wörld ✓"'''
stdin = '''copy stdin to stdout'''
argv = '''print each argument on a line of its own'''
error = '''fail with a status other than 0, with "boom" on stderr'''
wall = '''never end'''
memory = '''take memory without end'''
output = '''print one million times x'''
"""


def draft_language(name: str) -> str:
    """Return a draft that the catalogue takes. *Raises* CatalogueError when the name is none for a language."""
    try:
        text = _DRAFT.format(name=name)
        parse_language(f"{name}.toml", tomllib.loads(text))
    except tomllib.TOMLDecodeError:
        raise CatalogueError(f"{name!r} is no name for a language") from None
    return text
