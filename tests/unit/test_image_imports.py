"""Imports of what other tools export: layers over each other, compressed or not, and nothing of it trusted."""

from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import tarfile
import zipfile
from pathlib import Path

import pytest
import zstandard

from sandfork.errors import ArchiveRefused, StoreUnusable
from sandfork.images import making
from sandfork.images.archive import Bounds
from sandfork.images.making import import_directory, import_image
from sandfork.images.progress import tell_nobody
from sandfork.images.store import Store
from tests.support.images import member, small_tree, tar_of

LOWER = tar_of([member("etc", type=tarfile.DIRTYPE), member("etc/gone", b"1"), member("etc/kept", b"1")])
UPPER = tar_of([member("etc/.wh.gone"), member("usr/bin/tool", b"2", mode=0o4755)])
BOUNDS = Bounds(1 << 20, 1000)


def full(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def add_blob(layout: Path, raw: bytes) -> dict[str, object]:
    digest = hashlib.sha256(raw).hexdigest()
    (layout / "blobs/sha256").mkdir(parents=True, exist_ok=True)
    (layout / "blobs/sha256" / digest).write_bytes(raw)
    return {"digest": f"sha256:{digest}", "size": len(raw)}


def oci_layout(path: Path, *layers: bytes) -> Path:
    path.mkdir()
    manifest = add_blob(path, json.dumps({"layers": [add_blob(path, raw) for raw in layers]}).encode())
    (path / "index.json").write_text(json.dumps({"manifests": [manifest]}))
    return path


def docker_save(path: Path, layers: list[bytes], names: list[str] | None = None) -> Path:
    named = names or [f"{number}/layer.tar" for number in range(len(layers))]
    manifest = json.dumps([{"Layers": named}]).encode()
    files = [member(name, raw) for name, raw in zip(named, layers, strict=False)]
    path.write_bytes(tar_of([*files, member("manifest.json", manifest)]))
    return path


def imported(store: Store, export: Path) -> dict[str, str]:
    """Import and return the files of the image by path."""
    manifest = import_image(store, "image", (), export, BOUNDS, tell_nobody)
    tree = store.tree(manifest)
    return {str(path.relative_to(tree)): path.read_text() for path in tree.rglob("*") if path.is_file()}


def nothing_of_it(store: Store) -> bool:
    parts = ("manifests", "blobs", "trees", "work")
    return store.list() == () and not any(list((store.root / part).iterdir()) for part in parts)


@pytest.mark.parametrize(
    "packed", [bytes, gzip.compress, zstandard.ZstdCompressor().compress], ids=["tar", "gz", "zstd"]
)
def test_an_oci_layout_is_one_tree_of_its_layers(packed: object, store: Store, tmp_path: Path) -> None:
    assert callable(packed)
    layout = oci_layout(tmp_path / "layout", packed(LOWER), packed(UPPER))
    wanted = {"etc/kept": "1", "usr/bin/tool": "2"}
    assert imported(store, layout) == wanted
    with tarfile.open(tmp_path / "layout.tar", "w") as tar:
        tar.add(layout, ".")
    assert imported(store, tmp_path / "layout.tar") == wanted


def test_what_lost_its_set_uid_bit_is_told(store: Store, tmp_path: Path) -> None:
    lower = tar_of([member("bin/su", b"1", mode=0o4755), member("bin/gone", b"1", mode=0o4755), member("bin/ls", b"1")])
    upper = tar_of([member("bin/.wh.gone"), member("bin/wall\n", b"1", mode=0o2755), member("plain", b"1")])
    again = tar_of([member("bin/su", b"2", mode=0o755)])
    one = import_image(store, "one", (), docker_save(tmp_path / "1", [lower, upper]), BOUNDS, tell_nobody)
    assert one.set_id == ("bin/su", "bin/wall\\n")
    other = import_image(store, "other", (), docker_save(tmp_path / "2", [lower, again]), BOUNDS, tell_nobody)
    assert other.set_id == ("bin/gone",)
    tree = import_directory(store, "tree", (), small_tree(tmp_path / "tree"), BOUNDS, tell_nobody)
    assert (tree.set_id, store.get("tree").set_id) == (("usr/bin/same",), ("usr/bin/same",))
    assert all(path.lstat().st_mode & 0o6000 == 0 for path in store.tree(tree).rglob("*"))


def test_what_docker_saves_is_one_tree_of_its_layers(store: Store, tmp_path: Path) -> None:
    assert imported(store, docker_save(tmp_path / "saved.tar", [LOWER, UPPER])) == {
        "etc/kept": "1",
        "usr/bin/tool": "2",
    }


def zipped(path: Path, name: str) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as made:
        made.writestr(name, bytes(2 << 20))
    return path


def test_a_hostile_export_is_refused_and_leaves_nothing(store: Store, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    canary.write_bytes(LOWER)
    through = tar_of([member("a", type=tarfile.SYMTYPE, linkname=str(tmp_path)), member("a/canary", b"x")])
    bomb = gzip.compress(tar_of([member("zeros", bytes(2 << 20))]))
    damaged = bytearray(gzip.compress(LOWER))
    damaged[-6] ^= 1
    wrong = oci_layout(tmp_path / "wrong", LOWER)
    for path in (wrong / "blobs/sha256").iterdir():
        if path.read_bytes() == LOWER:
            path.write_bytes(UPPER)
    linked = oci_layout(tmp_path / "linked", LOWER)
    for path in (linked / "blobs/sha256").iterdir():
        if path.read_bytes() == LOWER:
            path.unlink()
            path.symlink_to(canary)
    squeeze = zstandard.ZstdCompressor().compress
    (tmp_path / "empty").mkdir()
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep/index.json").write_text("[" * 100_000)
    (tmp_path / "named").mkdir()
    (tmp_path / "named/index.json").write_text(json.dumps({"manifests": [{"digest": "sha256:../../canary"}]}))
    exports = {
        "through a link": docker_save(tmp_path / "1", [through]),
        "bomb": docker_save(tmp_path / "2", [bomb]),
        "damaged": docker_save(tmp_path / "3", [bytes(damaged)]),
        "cut": docker_save(tmp_path / "4", [gzip.compress(LOWER)[:-9]]),
        "layer out": docker_save(tmp_path / "5", [], ["../canary"]),
        "absolute layer": docker_save(tmp_path / "6", [], [str(canary)]),
        "device": docker_save(tmp_path / "7", [tar_of([member("null", type=tarfile.CHRTYPE)])]),
        "wrong digest": wrong, "linked blob": linked, "empty": tmp_path / "empty", "deep": tmp_path / "deep",
        "digest with a path": tmp_path / "named",
        "zstd bomb": docker_save(tmp_path / "8", [squeeze(tar_of([member("zeros", bytes(2 << 20))]))]),
        "zeros without end": docker_save(tmp_path / "9", [gzip.compress(LOWER + bytes(20 << 20))]),
        "zip": zipped(tmp_path / "10", "../canary"),
        "missing": tmp_path / "missing",
    }  # fmt: skip
    for name, export in exports.items():
        with pytest.raises(ArchiveRefused):
            import_image(store, "image", (), export, BOUNDS, tell_nobody)
        assert name == "missing" or nothing_of_it(store), name
    assert canary.read_bytes() == LOWER


def test_a_directory_is_imported_without_what_each_sandbox_has_of_its_own(store: Store, tmp_path: Path) -> None:
    tree = small_tree(tmp_path / "tree")
    manifest = import_directory(store, "dir", ("bash",), tree, BOUNDS, tell_nobody)
    assert sorted(os.listdir(store.tree(manifest) / "dev")) == []
    os.mkfifo(tree / "usr/pipe")
    with pytest.raises(ArchiveRefused, match="usr/pipe"):
        import_directory(store, "other", (), tree, BOUNDS, tell_nobody)
    (tree / "usr/pipe").unlink()
    with pytest.raises(ArchiveRefused, match="most that was allowed"):
        import_directory(store, "other", (), tree, Bounds(3, 100), tell_nobody)
    assert [each.name for each in store.list()] == ["dir"]


def test_a_full_disk_is_the_stores_and_not_that_of_what_is_imported(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree, layout = tmp_path / "tree", oci_layout(tmp_path / "layout", LOWER)
    (tree / "usr").mkdir(parents=True)
    monkeypatch.setattr(making, "pack", full)
    told = rf"^the store of images in {store.root}: No space left on device$"
    with pytest.raises(StoreUnusable, match=told):
        import_directory(store, "image", (), tree, BOUNDS, tell_nobody)
    with pytest.raises(StoreUnusable, match=told):
        import_image(store, "image", (), layout, BOUNDS, tell_nobody)
    assert list((store.root / "work").iterdir()) == []


def test_what_is_no_root_file_system_is_refused_by_name(store: Store, tmp_path: Path) -> None:
    (tmp_path / "tree/etc").mkdir(parents=True)
    with pytest.raises(ArchiveRefused, match=f"^{tmp_path}/tree: there is no usr and no bin in it"):
        import_directory(store, "image", (), tmp_path / "tree", BOUNDS, tell_nobody)
    (tmp_path / "text").write_text("no archive, and longer than a header\n" * 100)
    with pytest.raises(ArchiveRefused, match=f"^{tmp_path}/text: a header is malformed"):
        import_image(store, "image", (), tmp_path / "text", BOUNDS, tell_nobody)
