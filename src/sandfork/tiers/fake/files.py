"""The files of a fake sandbox: a dictionary. Directories are there as long as something is in them."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from fnmatch import fnmatchcase

from sandfork.errors import DiskFull, FileNotInSandbox, FileTooLarge, GuestLost
from sandfork.model import FileEntry, InputFile, OutputFile
from sandfork.tiers.base import Collected

WORK_DIR = "/sandbox"
WRITABLE = (WORK_DIR, "/tmp", "/dev/shm")
PIECE_BYTES = 64 << 10


def absolute_path(path: str) -> str:
    """Return a file's absolute path. *Raises* FileNotInSandbox when it leaves what the sandbox may write to."""
    absolute = _absolute(path)
    if absolute in WRITABLE:
        raise FileNotInSandbox(f"{path}: not a file")
    return absolute


def _absolute(path: str) -> str:
    parts = [part for part in path.split("/") if part not in ("", ".")]
    absolute = "/" + "/".join(parts) if path.startswith("/") else "/".join((WORK_DIR, *parts))
    if ".." in parts or "\0" in path or not any(f"{absolute}/".startswith(f"{each}/") for each in WRITABLE):
        raise FileNotInSandbox(f"{path!r}: not below a writable directory of the sandbox")
    return absolute


def _matches(path: str, pattern: str) -> bool:
    """Tell whether a glob matches, part by part: a `*` stays within one directory."""
    parts, wanted = path.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


class FakeFiles:
    """See `tiers.base.Files`. `contents` maps absolute paths to contents; None stands for what is no regular file."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes | None] = {}
        self.max_bytes: int | None = None
        self.closed = False

    def put(self, files: Sequence[InputFile]) -> None:
        """Write files, all or none."""
        self.contents.update({absolute_path(file.path): file.content for file in files})

    def collect(self, patterns: Sequence[str], max_bytes: int) -> Collected:
        """Read files by path or glob, in order of their paths."""
        self._check_open()
        found: list[OutputFile] = []
        skipped: list[str] = []
        for path, content in sorted(self.contents.items()):
            shown = path.removeprefix(f"{WORK_DIR}/")
            if not any(_matches(shown, pattern) for pattern in patterns):
                continue
            if content is None or len(content) > max_bytes:
                skipped.append(shown)
            else:
                max_bytes -= len(content)
                found.append(OutputFile(shown, content))
        return Collected(tuple(found), tuple(skipped))

    async def list(self, path: str) -> Sequence[FileEntry]:
        """Return the entries of a directory, sorted by name."""
        self._check_open()
        directory = _absolute(path)
        below = {inner.removeprefix(f"{directory}/"): what for inner, what in self._below(directory).items()}
        if not below and directory not in WRITABLE:
            raise FileNotInSandbox(f"{path}: no such directory")
        found = {}
        for inner, content in below.items():
            name, deeper, _ = inner.partition("/")
            kind = "directory" if deeper else "link" if content is None else "file"
            found[name] = FileEntry(name, kind, 0 if deeper else len(content or b""))
        return [found[name] for name in sorted(found)]

    async def read(self, path: str, max_bytes: int) -> tuple[int, AsyncIterator[bytes]]:
        """Return the size of a regular file and its content, in pieces."""
        self._check_open()
        content = self.contents.get(absolute_path(path))
        if content is None:
            raise FileNotInSandbox(f"{path}: not a regular file")
        if len(content) > max_bytes:
            raise FileTooLarge(path, max_bytes)
        return len(content), self._pieces(path, content)

    async def _pieces(self, path: str, content: bytes) -> AsyncIterator[bytes]:
        for start in range(0, len(content), PIECE_BYTES):
            self._check_open()
            if self.contents.get(absolute_path(path)) is not content:
                raise FileNotInSandbox(f"{path}: changed while it was read")
            yield content[start : start + PIECE_BYTES]

    async def write(self, path: str, chunks: AsyncIterable[bytes], mode: int = 0o644) -> int:
        """Write a file as its content arrives; what fails leaves none."""
        self._check_open()
        absolute = absolute_path(path)
        self._check_place(path, absolute)
        content = b""
        self.contents[absolute] = content
        try:
            async for chunk in chunks:
                self._check_open()
                self._check_space(path, len(chunk))
                content += chunk
                self.contents[absolute] = content
        except BaseException:
            self.contents.pop(absolute, None)
            raise
        return len(content)

    async def delete(self, path: str) -> None:
        """Remove a file, or a directory with all in it."""
        self._check_open()
        absolute = absolute_path(path)
        gone = [*self._below(absolute), *([absolute] if absolute in self.contents else ())]
        if not gone:
            raise FileNotInSandbox(f"{path}: no such file or directory")
        for each in gone:
            del self.contents[each]

    def _below(self, directory: str) -> dict[str, bytes | None]:
        return {path: content for path, content in self.contents.items() if path.startswith(f"{directory}/")}

    def _check_place(self, path: str, absolute: str) -> None:
        """*Raises* FileNotInSandbox where no regular file can be."""
        above = absolute
        while (above := above.rpartition("/")[0]) and above not in WRITABLE:
            if above in self.contents:
                raise FileNotInSandbox(f"{path}: {above} is no directory")
        if self._below(absolute) or self.contents.get(absolute, b"") is None:
            raise FileNotInSandbox(f"{path}: not a regular file")

    def _check_space(self, path: str, more: int) -> None:
        if (
            self.max_bytes is not None
            and sum(len(each or b"") for each in self.contents.values()) + more > self.max_bytes
        ):
            raise DiskFull(f"{path}: the sandbox's disk is full")

    def _check_open(self) -> None:
        if self.closed:
            raise GuestLost("the fake sandbox is closed")
