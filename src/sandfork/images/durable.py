"""Files that are there after a crash, once the call that wrote them has returned."""

from __future__ import annotations

import errno
import os
from pathlib import Path


def write_durably(path: Path, content: bytes) -> None:
    """Write a file that was not there, for all to read. *Raises* OSError."""
    with path.open("xb") as file:
        file.write(content)
        file.flush()
        os.fchmod(file.fileno(), 0o644)
        os.fsync(file.fileno())


def is_full(error: OSError) -> bool:
    """Tell whether there was no room, on the disk or for this user on it."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


def sync_directory(directory: Path) -> None:
    """Have the names in a directory outlive a crash. *Raises* OSError."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
