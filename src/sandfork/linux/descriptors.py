"""Open files, which run out: RLIMIT_NOFILE bounds what a process may have, a sysctl what the machine may."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})
"""What the kernel answers when there are no more, here or on the machine."""


class Spare:
    """A descriptor held back: what came of a program can be read though no other is left."""

    def __init__(self) -> None:
        self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    @contextmanager
    def lent(self) -> Iterator[None]:
        """Let the block open one file, which it must close."""
        self.close()
        try:
            yield
        finally:
            with suppress(OSError):  # taken by another thread: the next block may find none, and says so
                self._fd = os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        """Give it up."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)
