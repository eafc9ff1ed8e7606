"""What packages write while they are installed says nothing of when that was."""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import pytest

from sandfork.images.timeless import certificates_without_times, compiled_without_times, key_store_at

EPOCH = 946_684_800
PASSWORD = "changeit".encode("utf-16-be")


def key_store(
    added_ms: int, kind: int = 2, password: bytes = PASSWORD, names: tuple[bytes, ...] = (b"a", b"bc")
) -> bytes:
    """Return a store of certificates as JavaKeyStore writes it."""
    content = struct.pack(">III", 0xFEEDFEED, 2, len(names))
    for name in names:
        certificate = b"certificate of " + name
        content += struct.pack(">IH", kind, len(name)) + name + struct.pack(">Q", added_ms)
        content += struct.pack(">H", 5) + b"X.509" + struct.pack(">I", len(certificate)) + certificate
    return content + hashlib.sha1(password + b"Mighty Aphrodite" + content).digest()


def store_of(tree: Path, content: bytes) -> Path:
    path = tree / "etc/ssl/certs/java/cacerts"
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    return path


def test_stores_of_the_same_certificates_become_the_same_and_stay_valid(tmp_path: Path) -> None:
    first, second = (store_of(tmp_path / name, key_store(at)) for name, at in (("first", 1), ("second", 1 << 41)))
    assert first.read_bytes() != second.read_bytes()
    for name in ("first", "second"):
        certificates_without_times(tmp_path / name, EPOCH)
    assert first.read_bytes() == second.read_bytes() == key_store(EPOCH * 1000)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x30\x82 another kind of store",
        key_store(1, kind=1),  # a private key
        key_store(1, password=b"other"),
        key_store(1)[:-1],
        key_store(1)[:60] + key_store(1)[-20:],
    ],
)
def test_what_is_no_store_of_certificates_is_left_as_it_is(content: bytes) -> None:
    assert key_store_at(content, EPOCH) == content


def test_a_store_whose_lengths_lie_is_left_as_it_is() -> None:
    content = struct.pack(">III", 0xFEEDFEED, 2, 9) + key_store(1)[12:-20]
    lie = content + hashlib.sha1(PASSWORD + b"Mighty Aphrodite" + content).digest()
    assert key_store_at(lie, EPOCH) == lie


def test_a_link_in_the_place_of_the_store_is_not_followed(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(key_store(1))
    link = tmp_path / "tree/etc/ssl/certs/java/cacerts"
    link.parent.mkdir(parents=True)
    link.symlink_to(elsewhere)
    certificates_without_times(tmp_path / "tree", EPOCH)
    assert elsewhere.read_bytes() == key_store(1)


def test_compiled_modules_that_are_checked_by_a_sum_are_not_checked_at_all(tmp_path: Path) -> None:
    kinds = {"checked": b"\3\0\0\0", "unchecked": b"\1\0\0\0", "timed": b"\0\0\0\0"}
    (tmp_path / "usr").mkdir()
    for name, flags in kinds.items():
        (tmp_path / f"usr/{name}.pyc").write_bytes(b"cafe" + flags + b"rest")
    compiled_without_times(tmp_path)
    found = {name: (tmp_path / f"usr/{name}.pyc").read_bytes() for name in kinds}
    assert found == {
        "checked": b"cafe\1\0\0\0rest", "unchecked": b"cafe\1\0\0\0rest", "timed": b"cafe\0\0\0\0rest"
    }  # fmt: skip
