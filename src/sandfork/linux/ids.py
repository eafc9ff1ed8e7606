"""Which ids and capabilities this process has to give away: a user namespace maps only some, a container holds few."""

from __future__ import annotations

from pathlib import Path

#: What root of a container must hold to give sandboxes uids of their own and to end them, by name and number.
REDUCED_CAPABILITIES = {"CHOWN": 0, "KILL": 5, "SETGID": 6, "SETUID": 7, "SETPCAP": 8}


def effective_capabilities(status: str | None = None) -> int:
    """Return the effective set of this process as a bit mask, from the text of /proc/self/status."""
    text = Path("/proc/self/status").read_text() if status is None else status
    words = next(line.split() for line in text.splitlines() if line.startswith("CapEff:"))
    return int(words[1], 16)


def is_mapped(first: int, count: int, id_map: str) -> bool:
    """Say whether ids `first` to `first + count - 1` are in the text of a uid_map or gid_map, in one extent of it."""
    for line in id_map.splitlines():
        inside, _, length = (int(word) for word in line.split())
        if inside <= first and first + count <= inside + length:
            return True
    return False


def is_ours_to_give(first: int, count: int) -> bool:
    """Say whether this process' user namespace has these ids, as users and as groups."""
    return all(is_mapped(first, count, Path(f"/proc/self/{name}").read_text()) for name in ("uid_map", "gid_map"))
