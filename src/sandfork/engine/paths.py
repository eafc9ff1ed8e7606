"""Paths inside a sandbox as requests name them, checked by their text alone.

This keeps nonsense and accidents out. It is not what confines a path: the tier resolves every path inside the sandbox,
where the sandbox's own symbolic links are.
"""

from __future__ import annotations

from sandfork.errors import InvalidRequest

WORK_DIR = "/sandbox"
"""Where a program starts and its text is written; relative paths are below it."""

WRITABLE_DIRS = (WORK_DIR, "/tmp")

PATH_MAX_BYTES = 4096
NAME_MAX_BYTES = 255


def normalise_path(field: str, path: str) -> str:
    """Return `path` without empty and `.` components: absolute when it was outside the work directory, else relative.

    `/sandbox/a//b`, `./a/b` and `a/b` all give `a/b`; `/tmp/x` stays. *Raises* InvalidRequest naming `field` when the
    path is empty, too long, names a directory, holds NUL or `..`, is no text a file system takes, or is absolute
    elsewhere.
    """
    encoded = _encode(field, path)
    if not encoded or b"\0" in encoded:
        raise InvalidRequest(field, "a path must not be empty or hold NUL")
    if len(encoded) > PATH_MAX_BYTES:
        raise InvalidRequest(field, f"a path is longer than {PATH_MAX_BYTES} bytes")
    parts = [part for part in path.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise InvalidRequest(field, "a path must not contain '..'")
    if any(len(part.encode()) > NAME_MAX_BYTES for part in parts):
        raise InvalidRequest(field, f"a part of a path is longer than {NAME_MAX_BYTES} bytes")
    if path.endswith(("/", "/.")) or path == ".":
        raise InvalidRequest(field, "a path must name a file, not a directory")
    if not path.startswith("/"):
        return "/".join(parts)
    top = "/" + parts[0] if parts else "/"
    if top not in WRITABLE_DIRS or len(parts) < 2:
        raise InvalidRequest(field, f"an absolute path must be below {' or '.join(WRITABLE_DIRS)}")
    return "/".join(parts[1:]) if top == WORK_DIR else "/" + "/".join(parts)


def _encode(field: str, path: str) -> bytes:
    try:
        return path.encode()
    except UnicodeEncodeError:
        raise InvalidRequest(field, "a path is not valid Unicode") from None
