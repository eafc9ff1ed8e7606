"""The store of images: published whole or not at all, kept while held, removed when nobody names it."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from sandfork.errors import ArchiveRefused, ImageBusy, ImageCorrupt, ImageNotFound, InvalidRequest, StoreUnusable
from sandfork.images.archive import Bounds
from sandfork.images.manifest import Manifest, decode_manifest, encode_manifest
from sandfork.images.packing import pack
from sandfork.images.progress import tell_nobody
from sandfork.images.store import Store
from tests.support.images import adopt_tree, small_tree


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return small_tree(tmp_path / "tree")


def content(store: Store) -> list[str]:
    """Return what the store holds, without its lock."""
    return sorted(str(p.relative_to(store.root)) for p in store.root.rglob("*") if p.is_file() and p.name != "lock")


def test_a_store_that_nobody_wrote_to_is_empty_and_stays_unmade(store: Store) -> None:
    assert store.list() == ()
    with pytest.raises(ImageNotFound):
        store.get("python")
    assert not store.root.exists()


def test_an_image_comes_back_as_it_was_adopted(store: Store, tree: Path) -> None:
    manifest = adopt_tree(store, tree, "small", ("bash",))
    assert store.list() == (manifest,) == (store.get("small"),)
    root = store.tree(manifest)
    assert (root / "usr/bin/tool").read_text() == "hello"
    assert os.readlink(root / "bin") == "usr/bin"
    assert (root / "usr/bin/same").samefile(root / "usr/bin/tool")
    assert (root / "usr/bin/tool").stat().st_mode & 0o7777 == 0o755, "neither set-uid nor writable by others"
    assert list((root / "dev").iterdir()) == []
    assert hashlib.sha256(store.blob(manifest.digest).read_bytes()).hexdigest() == manifest.digest[7:]


def test_the_same_tree_has_the_same_digest_whenever_and_wherever_it_is_packed(store: Store, tmp_path: Path) -> None:
    first, second = small_tree(tmp_path / "one"), small_tree(tmp_path / "two")
    for path in (first, second):
        os.utime(path / "usr/bin/tool", (1, 1))
    os.utime(second / "usr", (77, 77))
    assert adopt_tree(store, first, "one").digest == adopt_tree(store, second, "two").digest
    (second / "usr/bin/tool").chmod(0o644)
    assert adopt_tree(store, first, "one").digest != adopt_tree(store, second, "two").digest


def test_a_blob_of_another_digest_is_refused_and_leaves_nothing(store: Store, tree: Path, tmp_path: Path) -> None:
    blob = tmp_path / "blob"
    packed = pack(tree, blob, Bounds(), tell_nobody)
    raw = blob.read_bytes()
    good = adopt_tree(store, tree, "good")
    before = content(store)
    for damaged in (raw[:-1], raw + b"x", raw[:40] + bytes([raw[40] ^ 1]) + raw[41:], b""):
        blob.write_bytes(damaged)
        with pytest.raises(ImageCorrupt):
            store.adopt(msgspec.structs.replace(good, name="bad"), blob)
    blob.write_bytes(raw)
    with pytest.raises(ImageCorrupt, match="hold"):
        store.adopt(msgspec.structs.replace(good, name="bad", tree_bytes=packed.tree_bytes + 1), blob)
    with pytest.raises(ArchiveRefused, match="more than 1 bytes"):
        store.adopt(msgspec.structs.replace(good, name="bad"), blob, bounds=Bounds(max_bytes=1))
    with pytest.raises(ImageCorrupt, match="materials"):
        store.adopt(msgspec.structs.replace(good, name="bad"), blob, b"{}")
    assert content(store) == before
    assert list((store.root / "work").iterdir()) == []


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "A", "-x", ".x", "a..b", "a.", "x" * 65, "a\n", "ｐython"]
)
def test_a_name_that_is_a_path_or_a_surprise_is_refused(store: Store, tree: Path, name: str) -> None:
    with pytest.raises(InvalidRequest):
        adopt_tree(store, tree, name)
    with pytest.raises(InvalidRequest):
        store.get(name)


def test_content_is_collected_when_no_name_and_no_lease_holds_it(store: Store, tree: Path) -> None:
    old = adopt_tree(store, tree, "image")
    lease = store.lease("image")
    (tree / "usr/bin/tool").write_text("newer")
    new = adopt_tree(store, tree, "image")
    assert store.collect().digests == (), "held"
    assert (lease.tree / "usr/bin/tool").read_text() == "hello"
    lease.close()
    assert store.collect().digests == (old.digest,)
    assert store.list() == (new,)
    store.remove("image")
    garbage = store.collect()
    assert garbage.digests == (new.digest,)
    assert garbage.bytes > new.size
    assert content(store) == []


def test_a_lease_of_another_process_holds_and_ends_with_it(store: Store, tree: Path) -> None:
    manifest = adopt_tree(store, tree, "image")
    script = (
        "import sys; from pathlib import Path; from sandfork.images.store import Store\n"
        "lease = Store(Path(sys.argv[1])).lease('image'); print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, store.root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        store.remove("image")
        assert store.collect().digests == ()
        process.kill()
        process.wait()
    assert store.collect().digests == (manifest.digest,)


def test_an_image_is_made_by_one_at_a_time(store: Store) -> None:
    with store.work("one") as work, store.work("other"), store.work():
        with pytest.raises(ImageBusy, match="being made already"), Store(store.root).work("one"):
            raise AssertionError("two make one image")
        assert work.exists()
    with store.work("one"):
        pass


def test_what_a_killed_process_was_making_is_removed_by_the_next_that_writes(store: Store, tree: Path) -> None:
    script = (
        "import os, sys; from pathlib import Path; from sandfork.images.store import Store\n"
        "with Store(Path(sys.argv[1])).work() as work:\n"
        "    (work / 'half').write_text('x'); print(work, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, store.root], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        work = Path(process.stdout.readline().strip())
        adopt_tree(store, tree, "one")
        assert (work / "half").exists(), "its maker is alive"
        process.kill()
        process.wait()
    adopt_tree(store, tree, "two")
    assert not work.exists()


def test_a_progress_that_raises_ends_the_work_and_leaves_nothing(store: Store, tree: Path, tmp_path: Path) -> None:
    manifest = adopt_tree(store, tree, "image")
    before = content(store)

    def stop(percent: float, now: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.adopt(msgspec.structs.replace(manifest, name="other"), store.blob(manifest.digest), tell=stop)
    assert content(store) == before
    assert list((store.root / "work").iterdir()) == []


def test_a_manifest_that_is_damaged_is_told_as_such(store: Store, tree: Path) -> None:
    manifest = adopt_tree(store, tree, "image")
    assert decode_manifest(encode_manifest(manifest)) == manifest
    path = store.root / "manifests/image.json"
    for raw in (b"", b"{}", path.read_bytes()[:50], path.read_bytes().replace(b"sha256:", b"sha257:")):
        path.write_bytes(raw)
        with pytest.raises(ImageCorrupt):
            store.get("image")
    for shown in ({"created": "\x1b[2J"}, {"languages": ("a\nb",)}):
        path.write_bytes(encode_manifest(Manifest(**{**msgspec.structs.asdict(manifest), **shown})))
        with pytest.raises(ImageCorrupt, match="control characters"):
            store.get("image")
    path.write_bytes(encode_manifest(Manifest(**{**msgspec.structs.asdict(manifest), "name": "another"})))
    with pytest.raises(ImageCorrupt, match="another"):
        store.get("image")


def test_a_damaged_manifest_says_where_it_is_and_can_be_taken_away(store: Store, tree: Path) -> None:
    whole = adopt_tree(store, tree, "whole")
    adopt_tree(store, tree, "image")
    path = store.root / "manifests/image.json"
    for raw in (b"{", b"[" * 100_000, encode_manifest(whole)):
        path.write_bytes(raw)
        for use in (store.list, lambda: store.get("image"), store.collect):
            with pytest.raises(ImageCorrupt, match=rf"^{path}: .*; `sandfork rootfs remove image` takes it away"):
                use()
    assert store.names() == ["image", "whole"]
    store.remove("image")
    assert store.list() == (whole,)
    for name in ("image", "never"):
        with pytest.raises(ImageNotFound):
            store.remove(name)


def test_a_store_that_cannot_be_written_says_where_it_is(tmp_path: Path, tree: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreUnusable, match="file/store"):
        adopt_tree(Store(tmp_path / "file/store"), tree, "image")
