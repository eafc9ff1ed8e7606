"""The plan of a sandbox's root: what toolchains keep in /etc is copied, and of that only what anybody may read."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandfork.tiers.process import plan


def planned(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> dict[str, bytes]:
    """Return the entries that copying these makes, by path: the tag and the content of each."""
    monkeypatch.setattr(plan.Rooted, "matching", lambda source, pattern: [str(path) for path in paths])
    made = plan.plan_root(None, {})
    entries: dict[str, bytes] = {}
    rest = made.plan
    for path in made.entries:
        size = int.from_bytes(rest[4:8], "little")
        entries[path] = rest[:1] + rest[8 : 8 + size].partition(b"\0")[2]
        rest = rest[8 + size :]
    assert rest == b""
    return entries


def test_files_links_and_directories_are_copied_with_all_above_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "java"
    (tree / "security").mkdir(parents=True)
    (tree / "security" / "java.policy").write_bytes(b"grant\0all")
    (tree / "jvm.cfg").symlink_to("/elsewhere/jvm.cfg")
    entries = planned(monkeypatch, tree)
    assert entries[str(tree / "security" / "java.policy")] == b"Fgrant\0all\0"
    assert entries[str(tree / "jvm.cfg")] == b"L/elsewhere/jvm.cfg\0"
    for above in (tmp_path, tree, tree / "security"):
        assert entries[str(above)] == b"D"
    order = list(entries)
    assert order.index(str(tree)) < order.index(str(tree / "jvm.cfg"))


def test_what_not_everybody_may_read_and_what_is_large_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = tmp_path / "php"
    (tree / "private").mkdir(parents=True)
    for name, mode in (("open.ini", 0o644), ("secret.ini", 0o640), ("private/open.ini", 0o644)):
        (tree / name).write_bytes(b"x")
        (tree / name).chmod(mode)
    (tree / "private").chmod(0o750)
    (tree / "large").write_bytes(b"x" * (1 << 20))
    entries = planned(monkeypatch, tree)
    assert [path for path in entries if path.startswith(str(tree) + "/")] == [str(tree / "open.ini")]


def test_what_is_not_there_is_no_obstacle(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "/usr" in planned(monkeypatch)
