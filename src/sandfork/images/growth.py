"""How large a tree is while it grows, and ending what makes it when that is more than allowed."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Collection
from pathlib import Path
from threading import Event, Thread

from sandfork.errors import ArchiveRefused

_LOOK_S = 0.5
_SHARE = 10  # a look takes at most one part in so many of the time


def too_large(max_bytes: int) -> ArchiveRefused:
    """Return what is told of files that are larger than allowed."""
    return ArchiveRefused(f"the files hold more than {max_bytes >> 20:,} MB, which is the most that was allowed")


def size_of(tree: Path, without: Collection[str] = ()) -> int:
    """Return what the files of a tree hold, each counted once; `without` are paths in it. What goes meanwhile is 0."""
    left_out = {os.path.join(tree, path) for path in without}
    seen: set[tuple[int, int]] = set()
    size, directories = 0, [str(tree)]
    while directories:
        try:
            with os.scandir(directories.pop()) as entries:
                for entry in entries:
                    if entry.path in left_out:
                        continue
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISDIR(status.st_mode):
                        directories.append(entry.path)
                    elif stat.S_ISREG(status.st_mode) and (status.st_dev, status.st_ino) not in seen:
                        seen.add((status.st_dev, status.st_ino))
                        size += status.st_size
        except FileNotFoundError:
            continue
    return size


class Growth:
    """Watches a tree, from a thread of its own, while something makes it."""

    def __init__(self, tree: Path, max_bytes: int, without: Collection[str], end: Callable[[], None]) -> None:
        """`end` is called, once, when the tree is larger than `max_bytes`."""
        self.exceeded = False
        self._tree, self._max_bytes, self._without, self._end = tree, max_bytes, without, end
        self._over = Event()
        self._thread = Thread(target=self._watch, name="growth", daemon=True)

    def __enter__(self) -> Growth:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        pause_s = _LOOK_S
        while not self._over.wait(pause_s):
            since_s = time.monotonic()
            if size_of(self._tree, self._without) > self._max_bytes:
                self.exceeded = True
                self._end()
                return
            pause_s = max(_LOOK_S, _SHARE * (time.monotonic() - since_s))
