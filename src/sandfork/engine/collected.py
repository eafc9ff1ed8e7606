"""What a program left behind, made fit for a reply: names are bytes to the kernel and text to everyone else."""

from __future__ import annotations

from dataclasses import replace

from sandfork.tiers.base import Collected

MAX_SKIPPED = 1000
"""How many names of skipped files a reply carries: a program can make any number of them."""


def presentable(collected: Collected) -> Collected:
    """Return `collected` with nothing that text cannot carry.

    A file whose name is no UTF-8 is skipped, as whoever asked for it could not be told which it is; names of skipped
    files show U+FFFD for what is wrong in them. Beyond `MAX_SKIPPED` they are counted in one last entry.
    """
    if not collected.skipped and all(_is_text(file.path) for file in collected.files):
        return collected
    kept = tuple(file for file in collected.files if _is_text(file.path))
    unnamed = [file.path for file in collected.files if not _is_text(file.path)]
    names = [_as_text(path) for path in (*unnamed, *collected.skipped)]
    if len(names) > MAX_SKIPPED:
        names[MAX_SKIPPED:] = [f"and {len(names) - MAX_SKIPPED} more"]
    return replace(collected, files=kept, skipped=tuple(names))


def _is_text(path: str) -> bool:
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


def _as_text(path: str) -> str:
    """Replace what `os.fsdecode` could only carry as a surrogate."""
    return path.encode(errors="surrogateescape").decode(errors="replace") if not _is_text(path) else path
