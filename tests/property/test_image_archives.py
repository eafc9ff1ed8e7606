"""Fuzzing of what archives say: whatever bytes they have, they come out below the tree or as one refusal."""

from __future__ import annotations

import io
import os
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from sandfork.errors import ArchiveRefused
from sandfork.images.archive import Bounds
from sandfork.images.tree import tree_writer
from tests.support.images import member, tar_of

NAMES = st.lists(st.sampled_from(["a", "b", "..", ".", "", "l", ".wh.a", ".wh..wh..opq"]), min_size=1, max_size=4).map(
    "/".join
)
TYPES = st.sampled_from([b"0", b"\0", b"1", b"2", b"3", b"5", b"6", b"7", b"S"])
MEMBERS = st.builds(
    lambda name, type_, target, content: member(name, content if type_ in b"0\0" else b"", type=type_, linkname=target),
    NAMES, TYPES, NAMES, st.binary(max_size=600),
)  # fmt: skip
EDITS = st.lists(st.tuples(st.integers(0, 1 << 14), st.integers(0, 255)), max_size=8)


@settings(max_examples=150, deadline=None)
@given(st.lists(MEMBERS, max_size=6), EDITS, st.booleans())
def test_any_archive_comes_out_below_the_tree_or_is_refused(
    members: list[tuple[object, bytes]], edits: list[tuple[int, int]], whiteouts: bool
) -> None:
    raw = bytearray(tar_of(members))  # type: ignore[arg-type]
    for place, value in edits:
        raw[place % len(raw)] = value
    with tempfile.TemporaryDirectory() as directory:
        root = Path(directory, "root")
        root.mkdir()
        Path(directory, "a").write_text("canary")
        with tree_writer(str(root)) as writer:
            try:
                writer.extract(io.BytesIO(bytes(raw)), Bounds(4096, 100), whiteouts=whiteouts)
            except ArchiveRefused:
                pass
        assert sorted(os.listdir(directory)) == ["a", "root"]
        canary = Path(directory, "a")
        assert (canary.read_text(), canary.stat().st_nlink) == ("canary", 1)
        for path in root.rglob("*"):
            status = path.lstat()
            assert not status.st_mode & 0o7022 or path.is_symlink()


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=2048))
def test_any_bytes_are_an_archive_or_a_refusal(raw: bytes) -> None:
    with tempfile.TemporaryDirectory() as directory, tree_writer(directory) as writer:
        try:
            writer.extract(io.BytesIO(raw), Bounds(4096, 100))
        except ArchiveRefused:
            pass
