"""Making what packages write while they are installed independent of when that is, and of chance.

The times of files are not looked at here: packing has one for all that a build wrote.

Sources: PEP 552 for compiled modules of Python; for key stores of Java the class sun.security.provider.JavaKeyStore;
for what Mono compiles ahead MonoAotFileInfo of mono/mini/aot-runtime.h, whose last field is the number.
"""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

_CHECKED, _UNCHECKED = b"\3\0\0\0", b"\1\0\0\0"
_KEY_STORE = "etc/ssl/certs/java/cacerts"
_KEY_STORE_HEAD = struct.pack(">II", 0xFEEDFEED, 2)
_CERTIFICATE = 2
#: What is summed up before a key store's content: the password that Debian's has, as Java does, and a constant.
_SUM_OF = "changeit".encode("utf-16-be") + b"Mighty Aphrodite"
_SUM_BYTES = hashlib.sha1(usedforsecurity=False).digest_size
#: What a language does without, is written in another order each time, and is not worth putting in order: of Pike,
#: some seldom used modules compiled, which is done again in milliseconds by the program that uses one.
_DONE_WITHOUT = ("usr/lib/pike*/modules/**/*.o",)
_AOT = "usr/lib/mono/aot-cache/**/*.so"
_AOT_INFO = b"\0mono_aot_file_info\0"
_AOT_TEMPORARY = re.compile(rb"\0mono_aot_[A-Za-z0-9]{6}\.o\0")
_AOT_ID_BYTES = 16
_ELF_64_LITTLE = b"\x7fELF\2\1"
#: A comment that says when its file was written, and all that follows in its line, such as by whom and where.
_WHEN = re.compile(
    rb"^(# [^\n]*?) *(?:\d\d-\d\d-\d\d|\d{4}-\d\d-\d\d|(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun) [A-Z][a-z]{2} [ \d]\d)(?!\d)"
    rb"[^\n]*?(?<!\d)\d\d:\d\d:\d\d(?!\d)[^\n]*$",
    re.MULTILINE,
)
_COMMENTED_MAX_BYTES = 64 << 10


def without_times_and_chance(tree: Path, epoch: int, since: float) -> None:
    """Do all of this to a tree whose build began at `since` and shall have been at `epoch`, seconds since 1970."""
    for pattern in _DONE_WITHOUT:
        for path in tree.glob(pattern):
            path.unlink()
    compiled_without_times(tree)
    certificates_without_times(tree, epoch)
    comments_without_times(tree, since)
    for path in tree.glob(_AOT):
        path.write_bytes(aot_without_chance(path.read_bytes()))


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


def comments_without_times(tree: Path, since: float) -> None:
    """Have comments of small files not say when they were written, where that was at `since` or later."""
    for path in _written(tree, since):
        content = path.read_bytes()
        untimed = _WHEN.sub(rb"\1", content)
        if untimed != content:
            path.write_bytes(untimed)


def _written(tree: Path, since: float) -> Iterator[Path]:
    for directory, below, names in os.walk(tree):
        if Path(directory) == tree:
            below[:] = [name for name in below if name in ("etc", "usr", "var")]
        for name in names:
            status = os.lstat(path := os.path.join(directory, name))
            if stat.S_ISREG(status.st_mode) and status.st_mtime >= since and status.st_size <= _COMMENTED_MAX_BYTES:
                yield Path(path)


def aot_without_chance(compiled: bytes) -> bytes:
    """Return what Mono compiled ahead with a number that follows from it, and not a random one; else what is given.

    The name of the file that it was made from is in it as well, with six random letters.
    """
    if not compiled.startswith(_ELF_64_LITTLE) or _AOT_INFO not in compiled:
        return compiled
    content = bytearray(_AOT_TEMPORARY.sub(b"\0mono_aot_000000.o\0", compiled))
    where = _elf_section(compiled, b".data")
    if len(where) < _AOT_ID_BYTES:
        return compiled
    number = slice(where.stop - _AOT_ID_BYTES, where.stop)
    content[number] = bytes(_AOT_ID_BYTES)
    content[number] = hashlib.sha256(content).digest()[:_AOT_ID_BYTES]
    return bytes(content)


def _elf_section(elf: bytes, name: bytes) -> range:
    """Return where a section of a 64-bit little-endian ELF file is; an empty range when it has none, or is damaged."""
    try:
        (headers,) = struct.unpack_from("<Q", elf, 0x28)
        size, count, names_at = struct.unpack_from("<HHH", elf, 0x3A)
        sections = [struct.unpack_from("<II8x8xQQ", elf, headers + size * each) for each in range(count)]
        names = sections[names_at][2]
    except (struct.error, IndexError):
        return range(0)
    for name_at, _, offset, length in sections:
        if elf[names + name_at :].startswith(name + b"\0") and offset + length <= len(elf):
            return range(offset, offset + length)
    return range(0)
