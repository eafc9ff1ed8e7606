"""How large a tree is while it is made, and ending what makes it."""

from __future__ import annotations

from pathlib import Path
from threading import Event

from sandfork.images.growth import Growth, size_of


def test_every_file_counts_once_and_what_is_left_out_not_at_all(tmp_path: Path) -> None:
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/one").write_bytes(bytes(1000))
    (tmp_path / "usr/lib/same").hardlink_to(tmp_path / "usr/lib/one")
    (tmp_path / "usr/lib/link").symlink_to("one")
    (tmp_path / "var/cache").mkdir(parents=True)
    (tmp_path / "var/cache/package").write_bytes(bytes(500))
    assert size_of(tmp_path) == 1500
    assert size_of(tmp_path, ("var/cache",)) == 1000
    assert size_of(tmp_path / "absent") == 0


def test_what_makes_a_tree_too_large_is_ended(tmp_path: Path) -> None:
    ended = Event()
    with Growth(tmp_path, 1000, (), ended.set) as growth:
        (tmp_path / "large").write_bytes(bytes(1001))
        assert ended.wait(60)
    assert growth.exceeded


def test_what_keeps_its_bound_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "just").write_bytes(bytes(1000))
    with Growth(tmp_path, 1000, (), Event().set) as growth:
        pass
    assert not growth.exceeded
