"""What images and snapshots are called, and their content: names and digests. Both become parts of paths and keys."""

from __future__ import annotations

import hashlib
import re

from sandfork.errors import ImageCorrupt, InvalidRequest

_NAME_MAX = 64
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]*([.+][a-z0-9_-]+)*")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


def is_name(text: str) -> bool:
    """Tell whether an image or a snapshot can be called that: no path, no option, no surprise."""
    return len(text) <= _NAME_MAX and _NAME.fullmatch(text) is not None


def check_name(name: str) -> str:
    """Return a name that an image or a snapshot can have. *Raises* InvalidRequest."""
    if not is_name(name):
        raise InvalidRequest(
            "name",
            f"{name[:_NAME_MAX]!r} is no name: at most {_NAME_MAX} of a-z, 0-9 and, inside, '.', '_', '+' and '-'",
        )
    return name


def is_digest(text: str) -> bool:
    """Tell whether a text is a digest: "sha256:" and 64 hexadecimal digits."""
    return _DIGEST.fullmatch(text) is not None


def digest_of(content: bytes) -> str:
    """Return the digest of content."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def hex_of(digest: str) -> str:
    """Return the hexadecimal digits of a digest. *Raises* ImageCorrupt when it is none."""
    if not is_digest(digest):
        raise ImageCorrupt(f"{digest[:80]!r} is no sha256 digest")
    return digest.removeprefix("sha256:")
