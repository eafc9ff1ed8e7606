"""Removing what was being made: directories, whatever modes are in them, unless their maker is still at it."""

from __future__ import annotations

import fcntl
import os
import shutil
from pathlib import Path


def remove_abandoned(path: Path) -> None:
    """Remove a work directory whose maker is gone."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        remove_tree(path)
    finally:
        os.close(fd)


def remove_tree(path: Path) -> None:
    """Remove a directory with all in it, modes that forbid it included; one that is gone is no error."""

    def allow(_: object, failed: str, __: object) -> None:
        if os.path.lexists(failed):
            os.chmod(os.path.dirname(failed), 0o700)
            (shutil.rmtree if os.path.isdir(failed) and not os.path.islink(failed) else os.unlink)(failed)

    if path.exists():
        shutil.rmtree(path, onerror=allow)
