"""Making what packages write while they are installed independent of when they are, beyond the times of files.

Sources: PEP 552 for compiled modules of Python; for key stores of Java the class sun.security.provider.JavaKeyStore.
"""

from __future__ import annotations

import hashlib
import os
import struct
from pathlib import Path

_CHECKED, _UNCHECKED = b"\3\0\0\0", b"\1\0\0\0"
_KEY_STORE = "etc/ssl/certs/java/cacerts"
_KEY_STORE_HEAD = struct.pack(">II", 0xFEEDFEED, 2)
_CERTIFICATE = 2
#: What is summed up before a key store's content: the password that Debian's has, as Java does, and a constant.
_SUM_OF = "changeit".encode("utf-16-be") + b"Mighty Aphrodite"
_SUM_BYTES = hashlib.sha1(usedforsecurity=False).digest_size


def compiled_without_times(tree: Path) -> None:
    """Have compiled modules that are checked against their source's hash not be checked at all (PEP 552).

    That is how they are compiled when SOURCE_DATE_EPOCH is set. Nothing changes an image's sources, and reading each
    to sum it up would have imports take longer than on the host.
    """
    for directory, _, names in os.walk(tree / "usr"):
        for name in names:
            if not name.endswith(".pyc"):
                continue
            with open(os.path.join(directory, name), "r+b") as file:
                file.seek(4)
                if file.read(4) == _CHECKED:
                    file.seek(4)
                    file.write(_UNCHECKED)


def certificates_without_times(tree: Path, epoch: int) -> None:
    """Have Java's certificates say that they were added at `epoch`, seconds since 1970; other kinds of stores are left.

    Programs trust the same certificates, and nothing asks when that began.
    """
    path = tree / _KEY_STORE
    if path.is_symlink() or not path.is_file():
        return
    stored = path.read_bytes()
    retimed = key_store_at(stored, epoch)
    if retimed != stored:
        path.write_bytes(retimed)


def key_store_at(stored: bytes, epoch: int) -> bytes:
    """Return a key store whose certificates were added at `epoch`; what is none of certificates comes back as it is."""
    if not stored.startswith(_KEY_STORE_HEAD) or stored[-_SUM_BYTES:] != _sum(stored[:-_SUM_BYTES]):
        return stored
    content = bytearray(stored[:-_SUM_BYTES])
    (entries,) = struct.unpack_from(">I", content, len(_KEY_STORE_HEAD))
    at = len(_KEY_STORE_HEAD) + 4
    try:
        for _ in range(entries):
            kind, alias = struct.unpack_from(">IH", content, at)
            if kind != _CERTIFICATE:
                return stored
            at += 6 + alias
            struct.pack_into(">Q", content, at, epoch * 1000)
            at += 8
            at += 2 + struct.unpack_from(">H", content, at)[0]  # the certificate's type
            at += 4 + struct.unpack_from(">I", content, at)[0]
    except struct.error:
        return stored
    return bytes(content) + _sum(bytes(content)) if at == len(content) else stored


def _sum(content: bytes) -> bytes:
    return hashlib.sha1(_SUM_OF + content, usedforsecurity=False).digest()
