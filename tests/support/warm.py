"""A language with a warm cache, and a cache of its, as a toolchain leaves it."""

from __future__ import annotations

import io
import tarfile
import tomllib
from pathlib import Path

from sandfork.config.schema import Config, Images
from sandfork.languages.catalogue import Language, parse_language
from sandfork.serve_caches import WARM_DIR

#: "Compiled" by a shell that runs the text; the cache's own file is `kept`.
TEXT = """
name = "made"
extension = ".made"
file_name = "main.made"
argv = ["{out}"]
needs = ["TOOL"]
[compile]
argv = ["/bin/sh", "{name}", "{out}", "--from={warm}/kept"]
[env]
CACHE = "{warm}"
PLAIN = "x"
[warm]
argv = ["/bin/sh", "-ec", "cat {name} > {warm}/kept; FILL"]
[without]
argv = "it has no words"
[checks]
hello = "a program"
stdin = "2"
error = "4"
compile_error = "oh"
wall = "5"
memory = "6"
output = "7"
"""


def warm_language(fill: str = ":", tool: str = "/bin/sh", text: str = TEXT) -> Language:
    """Return the language; `fill` is what its toolchain does besides, `tool` a further program that it needs."""
    return parse_language("made.toml", tomllib.loads(text.replace("FILL", fill).replace("TOOL", tool)))


def store_in(directory: Path) -> Config:
    """Return settings whose images and warm caches are in a directory."""
    return Config(images=Images(directory=str(directory)))


def cache_tar(content: bytes = b"kept") -> bytes:
    """Return a tar as it comes out of the sandbox of a toolchain."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        entry = tarfile.TarInfo(f"{WARM_DIR}/kept")
        entry.size = len(content)
        tar.addfile(entry, io.BytesIO(content))
    return out.getvalue()
