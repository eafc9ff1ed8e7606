"""Archives that may be hostile: nothing is written but below the tree, and refusals have controls."""

from __future__ import annotations

import io
import os
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from sandfork.errors import ArchiveRefused
from sandfork.images.archive import Bounds
from sandfork.images.tree import tree_writer
from tests.support.images import member, tar_of

File = tuple[tarfile.TarInfo, bytes]
SYM, LNK, DIR = tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.DIRTYPE


def extract(raw: bytes, root: Path, bounds: Bounds | None = None, *, whiteouts: bool = False) -> None:
    root.mkdir(exist_ok=True)
    with tree_writer(str(root)) as writer:
        writer.extract(io.BytesIO(raw), bounds or Bounds(1 << 20, 1000), whiteouts=whiteouts)


def link(name: str, target: str) -> File:
    return member(name, type=SYM, linkname=target)


ESCAPES: dict[str, Callable[[Path], list[File]]] = {
    "absolute": lambda canary: [member(str(canary), b"x")],
    "dots": lambda canary: [member(f"../{canary.name}", b"x")],
    "dots inside": lambda canary: [member(f"a/../../{canary.name}", b"x")],
    "through a link": lambda canary: [link("a", ".."), member(f"a/{canary.name}", b"x")],
    "through an absolute link": lambda canary: [link("a", str(canary.parent)), member(f"a/{canary.name}", b"x")],
    "through two links": lambda canary: [
        member("d", type=DIR), link("d/up", ".."), link("a", "d/up/.."), member(f"a/{canary.name}", b"x"),
    ],
    "onto a link": lambda canary: [link("a", str(canary)), member("a", b"x")],
    "a directory onto a link": lambda canary: [link("a", str(canary.parent)), member("a", type=DIR, mode=0o700)],
    "hard link out": lambda canary: [member("a", type=LNK, linkname=f"../{canary.name}"), member("b", b"x")],
    "absolute hard link": lambda canary: [member("a", type=LNK, linkname=str(canary))],
    "hard link to a link": lambda canary: [link("a", str(canary)), member("b", type=LNK, linkname="a")],
    "hard link through a link": lambda canary: [
        link("a", str(canary.parent)), member("b", type=LNK, linkname=f"a/{canary.name}"),
    ],
    "long name": lambda canary: [member("a/" * 10 + "../" * 30 + canary.name, b"x")],
}  # fmt: skip


@pytest.mark.parametrize("attempt", ESCAPES.values(), ids=ESCAPES.keys())
@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT], ids=["pax", "gnu"])
def test_no_archive_reaches_a_file_outside(attempt: Callable[[Path], list[File]], format: int, tmp_path: Path) -> None:  # noqa: A002
    canary = tmp_path / "canary"
    canary.write_text("untouched")
    before = canary.stat()
    with pytest.raises(ArchiveRefused):
        extract(tar_of(attempt(canary), format), tmp_path / "root")
    assert canary.stat() == before
    assert canary.read_text() == "untouched"
    assert canary.stat().st_nlink == 1
    assert sorted(os.listdir(tmp_path)) == ["canary", "root"]


def test_the_same_escapes_succeed_with_a_reader_that_trusts(tmp_path: Path) -> None:
    """The control: some of these archives do write outside when nothing is checked."""
    canary = tmp_path / "canary"
    reached = set()
    for name, attempt in ESCAPES.items():
        canary.unlink(missing_ok=True)
        canary.write_text("untouched")
        root = tmp_path / f"root-{len(name)}-{name.replace(' ', '-')}"
        root.mkdir()
        with tarfile.open(fileobj=io.BytesIO(tar_of(attempt(canary)))) as tar:
            tar.extraction_filter = lambda member, path: member  # Python 3.14 no longer trusts by itself
            try:
                tar.extractall(root)
            except (OSError, KeyError):
                continue
        if not canary.exists() or canary.read_text() != "untouched" or canary.stat().st_nlink > 1:
            reached.add(name)
    assert {"absolute", "dots", "through a link", "absolute hard link"} <= reached


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (member("a", type=tarfile.CHRTYPE, devmajor=1, devminor=3), "a device"),
        (member("a", type=tarfile.BLKTYPE), "a device"),
        (member("a", type=tarfile.FIFOTYPE), "a FIFO"),
        (member("a", type=tarfile.CONTTYPE), "unknown type"),
        (member("a", type=b"Z"), "unknown type"),
        (member("a", b"x", pax_headers={"GNU.sparse.major": "1", "GNU.sparse.realsize": "99999999999"}), "sparse"),
        (member("a", b"x", pax_headers={"size": "-1"}), "number"),
        (member("a", b"x", pax_headers={"size": "9" * 30}), "number"),
        (member("a", b"x", pax_headers={"size": "123456789"}), "holds more than"),
        (member("a", b"x", pax_headers={"surprise": "1"}), "unknown"),
        (member("a", b"x", pax_headers={"comment": "x" * 100_000}), "too large"),
        (member("a/" * 101 + "b"), "too deep"),
        (member("n" * 256), "too long"),
        (member("a", type=SYM, linkname=""), "no target"),
        (member("./", b""), "in the place of its own top"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_plain_file_directory_or_link_is_refused(made: File, reason: str, tmp_path: Path) -> None:
    with pytest.raises(ArchiveRefused, match=reason):
        extract(tar_of([made]), tmp_path / "root")
    assert os.listdir(tmp_path / "root") == []


@pytest.mark.parametrize(
    "twice",
    [
        [member("a", b"1"), member("a", b"2")],
        [member("a", b"1"), member("./a", type=DIR)],
        [member("a", type=DIR), member("a", b"1")],
        [member("a", type=DIR), link("a", "b")],
    ],
)
def test_an_archive_with_a_member_twice_is_refused(twice: list[File], tmp_path: Path) -> None:
    with pytest.raises(ArchiveRefused, match="twice"):
        extract(tar_of(twice), tmp_path / "root")
    extract(tar_of([member("d", type=DIR), member("d/", type=DIR)]), tmp_path / "other")


def test_more_members_or_more_content_than_allowed_are_refused(tmp_path: Path) -> None:
    files = [member(f"f{n}", b"x" * 100) for n in range(10)]
    extract(tar_of(files), tmp_path / "fits", Bounds(1000, 10))
    with pytest.raises(ArchiveRefused, match="more than 999 bytes"):
        extract(tar_of(files), tmp_path / "large", Bounds(999, 10))
    with pytest.raises(ArchiveRefused, match="more than 9 members"):
        extract(tar_of(files), tmp_path / "many", Bounds(1000, 9))


def test_directories_that_an_archive_leaves_out_are_bounded_too(tmp_path: Path) -> None:
    """A member of one block may stand for a hundred directories: a megabyte of them would take all inodes of a disk."""
    few = [member("a/" * 90 + "f"), member("b/" * 90 + "f")]
    extract(tar_of(few), tmp_path / "fits", Bounds(1000, 180))
    many = [member(f"{n}/" + "a/" * 90 + "f") for n in range(10)]
    with pytest.raises(ArchiveRefused, match="leaves out more than 180 directories"):
        extract(tar_of(many), tmp_path / "many", Bounds(1000, 180))
    assert sum(len(names) for _, names, _ in os.walk(tmp_path / "many")) <= 180


def test_an_archive_is_refused_wherever_it_is_cut(tmp_path: Path) -> None:
    whole = tar_of([member("a", b"x" * 700), member("b" * 120, b"y" * 10), member("c", type=DIR)])
    end = len(whole.rstrip(b"\0")) // 512 * 512 + 512
    for cut in range(0, end, 37):
        with pytest.raises(ArchiveRefused):
            extract(whole[:cut], tmp_path / f"root{cut}")
    extract(whole[: end + 512], tmp_path / "whole")


def test_something_behind_the_end_is_refused(tmp_path: Path) -> None:
    whole = tar_of([member("a", b"x")])
    extract(whole + bytes(10240), tmp_path / "padded")
    with pytest.raises(ArchiveRefused, match="follows"):
        extract(whole + tar_of([member("b", b"x")]), tmp_path / "root")


def test_modes_owners_and_links_come_out_as_they_may(tmp_path: Path) -> None:
    files = [
        member("set", b"x", mode=0o6777, uid=12345, gid=12345),
        member("d", type=DIR, mode=0o1777),
        member("d/same", type=LNK, linkname="set"),
        link("d/far", "/etc/passwd"),
        member("Ｕ．．／name\n", b"x", mtime=5),
    ]
    root = tmp_path / "root"
    extract(tar_of(files), root)
    made = (root / "set").lstat()
    assert (stat.S_IMODE(made.st_mode), made.st_uid, made.st_nlink) == (0o755, os.geteuid(), 2)
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o755
    assert os.readlink(root / "d/far") == "/etc/passwd"
    assert (root / "Ｕ．．／name\n").stat().st_mtime == 5


def test_a_layer_replaces_and_whites_out_what_is_below(tmp_path: Path) -> None:
    root = tmp_path / "root"
    extract(tar_of([
        member("keep", b"1"), member("gone", b"1"), member("dir", type=DIR), member("dir/old", b"1"),
        member("opaque", type=DIR), member("opaque/old", b"1"), member("flip", b"1"), link("l", "keep"),
    ]), root)  # fmt: skip
    extract(tar_of([
        member(".wh.gone"), member("opaque/new", b"2"), member("opaque/.wh..wh..opq"), member("flip", type=DIR),
        member("flip/in", b"2"), member("dir", b"2"), member("l", b"2"), member("hard", type=LNK, linkname="keep"),
    ]), root, whiteouts=True)  # fmt: skip
    found = {str(path.relative_to(root)): path.read_text() for path in root.rglob("*") if path.is_file()}
    assert found == {"keep": "1", "hard": "1", "opaque/new": "2", "flip/in": "2", "dir": "2", "l": "2"}


@pytest.mark.parametrize("name", [".wh..", ".wh...", ".wh.", ".wh..wh.plnk", "a/.wh..wh.orph"])
def test_a_whiteout_of_an_unknown_kind_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(ArchiveRefused):
        extract(tar_of([member(name)]), tmp_path / "root", whiteouts=True)
    assert tmp_path.exists()


def test_a_whiteout_through_a_link_removes_nothing_outside(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out/canary").write_text("x")
    root = tmp_path / "root"
    extract(tar_of([link("a", "../out")]), root)
    for name in ("a/.wh.canary", "a/.wh..wh..opq"):
        with pytest.raises(ArchiveRefused):
            extract(tar_of([member(name)]), root, whiteouts=True)
    assert (tmp_path / "out/canary").exists()
