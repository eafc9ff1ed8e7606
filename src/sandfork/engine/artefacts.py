"""What compilers made, kept in memory for the next run of the same program by the same caller.

An entry is found only by all that could have made a difference: the caller's key, the language, the compiler's command
line and environment, the text, the other files, and the state of the tools on this host. What has not been used for
longest is dropped first. Nothing that a failed compiler left is ever kept.
"""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from sandfork.model import Compilation, ExecPlan, InputFile

_ENTRY_BYTES = 1024
"""What an entry and each of its files take beside their content."""
_SOURCES_MAX_BYTES = 8 << 20
"""A program with more is compiled anew: to tell whether it is the same would take too long."""


@dataclass(frozen=True, slots=True)
class ArtefactStatistics:
    """The counts of this moment, and of hits and misses since the start."""

    entries: int = 0
    size_bytes: int = 0
    hits: int = 0
    misses: int = 0


class Artefacts:
    """The cache: least recently used entries go first."""

    def __init__(self, capacity_bytes: int, stamped: tuple[str, ...] = ()) -> None:
        """With a capacity of 0 nothing is kept. `stamped` are files that change whenever packages of the host do."""
        self._capacity_bytes = capacity_bytes
        self._stamped = stamped
        self._entries: OrderedDict[bytes, tuple[InputFile, ...]] = OrderedDict()
        self._size_bytes = 0
        self._hits = self._misses = 0

    def key_of(self, plan: ExecPlan) -> bytes | None:
        """Return what the artefacts of a plan are kept under, None when they are not to be."""
        compilation = plan.compilation
        if compilation is None or not self._capacity_bytes:
            return None
        step = compilation.step
        if len(step.code or b"") + sum(len(file.content) for file in step.files) > _SOURCES_MAX_BYTES:
            return None
        digest = hashlib.sha256()
        for part in self._parts(plan, compilation):
            digest.update(len(part).to_bytes(8))
            digest.update(part)
        return digest.digest()

    def _parts(self, plan: ExecPlan, compilation: Compilation) -> Iterator[bytes]:
        step = compilation.step
        yield plan.caller.key_id.encode()
        yield plan.language.encode()
        yield plan.image.encode()
        yield "\0".join((*step.argv, "", *compilation.artefacts)).encode("utf-8", "surrogateescape")
        yield "\0".join(f"{name}={value}" for name, value in step.env).encode()
        yield step.code or b""
        for file in step.files:
            yield file.path.encode()
            yield file.mode.to_bytes(4)
            yield file.content
        for path in (*compilation.tools, *self._stamped):
            yield stamp_of(path)

    def get(self, key: bytes) -> tuple[InputFile, ...] | None:
        """Return an entry and note that it is used."""
        files = self._entries.get(key)
        if files is None:
            self._misses += 1
        else:
            self._hits += 1
            self._entries.move_to_end(key)
        return files

    def put(self, key: bytes, files: tuple[InputFile, ...]) -> None:
        """Keep an entry; one that alone is larger than a quarter of the cache is not kept."""
        size_bytes = _size(files)
        if size_bytes * 4 > self._capacity_bytes:
            return
        self._size_bytes += size_bytes - _size(self._entries.pop(key, None))
        self._entries[key] = files
        while self._size_bytes > self._capacity_bytes:
            self._size_bytes -= _size(self._entries.popitem(last=False)[1])

    def clear(self) -> None:
        """Drop every entry."""
        self._entries.clear()
        self._size_bytes = 0

    def statistics(self) -> ArtefactStatistics:
        """Return the counts."""
        return ArtefactStatistics(len(self._entries), self._size_bytes, self._hits, self._misses)


def _size(files: Iterable[InputFile] | None) -> int:
    return 0 if files is None else _ENTRY_BYTES + sum(_ENTRY_BYTES + len(file.content) for file in files)


def stamp_of(path: str) -> bytes:
    """Return what changes when a file is replaced; nothing where there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return b""
    return f"{status.st_dev} {status.st_ino} {status.st_size} {status.st_mtime_ns}".encode()
