"""Look at a file system below a directory as one does who has it as `/`: links lead nowhere else."""

from __future__ import annotations

import fnmatch
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass

_LINKS_MAX = 40


@dataclass(frozen=True, slots=True)
class Rooted:
    """A root file system at `root`, which nobody changes while it is looked at; "/" is the host's own."""

    root: str = "/"

    def real(self, path: str) -> str:
        """Return where a path of the tree really is, as a path of the host. *Raises* FileNotFoundError, OSError."""
        left, links = path.split("/")[::-1], 0
        done: list[str] = []
        while left:
            part = left.pop()
            if part in ("", "."):
                continue
            if part == "..":
                done = done[:-1]
                continue
            here = self._join([*done, part])
            if not stat.S_ISLNK(os.lstat(here).st_mode):
                done.append(part)
                continue
            links += 1
            if links > _LINKS_MAX:
                raise FileNotFoundError(f"{path} leads through too many links")
            target = os.readlink(here)
            done = [] if target.startswith("/") else done
            left += target.split("/")[::-1]
        return self._join(done)

    def beside(self, path: str) -> str:
        """Return the host's path of an entry that may itself be a link. *Raises* FileNotFoundError, OSError."""
        above, _, name = path.rpartition("/")
        return os.path.join(self.real(above), name)

    def exists(self, path: str) -> bool:
        """Tell whether a path leads to something."""
        try:
            return os.path.lexists(self.real(path))
        except OSError:
            return False

    def has(self, pattern: str) -> bool:
        """Tell whether a path, or one that matches a pattern, leads to something."""
        try:
            return next(self.matching(pattern), None) is not None
        except OSError:
            return False

    def isdir(self, path: str) -> bool:
        """Tell whether a path leads to a directory."""
        return self.exists(path) and os.path.isdir(self.real(path))

    def isfile(self, path: str) -> bool:
        """Tell whether a path leads to a regular file."""
        return self.exists(path) and os.path.isfile(self.real(path))

    def link(self, path: str) -> str | None:
        """Return what the link at a path says, None when there is no link."""
        try:
            return os.readlink(self.beside(path))
        except OSError:
            return None

    def status(self, path: str) -> os.stat_result:
        """Return the status of an entry itself. *Raises* OSError."""
        return os.lstat(self.beside(path))

    def names(self, path: str) -> list[str]:
        """Return the names in a directory, sorted. *Raises* OSError."""
        return sorted(os.listdir(self.real(path)))

    def read(self, path: str) -> bytes:
        """Return what a regular file holds. *Raises* OSError."""
        with open(self.real(path), "rb") as file:
            return file.read()

    def matching(self, pattern: str) -> Iterator[str]:
        """Yield the paths that match a pattern such as /etc/php/*/cli, sorted."""
        return self._matching("", pattern.strip("/").split("/"))

    def _matching(self, above: str, parts: list[str]) -> Iterator[str]:
        if not parts:
            yield above
            return
        if not any(mark in parts[0] for mark in "*?["):
            if self.exists(f"{above}/{parts[0]}"):
                yield from self._matching(f"{above}/{parts[0]}", parts[1:])
            return
        if self.isdir(above or "/"):
            for name in self.names(above or "/"):
                if fnmatch.fnmatchcase(name, parts[0]) and not name.startswith("."):
                    yield from self._matching(f"{above}/{name}", parts[1:])

    def _join(self, parts: list[str]) -> str:
        return os.path.join(self.root, *parts)
