"""What is told of what is there: on this machine, and in a bucket, which is read once for all that ask meanwhile."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sandfork import serve_shelf
from sandfork.config import Config
from sandfork.config.schema import Remote
from sandfork.errors import RemoteFailed
from sandfork.images.archive import Bounds
from sandfork.images.bucket import BucketSettings
from sandfork.images.making import import_directory
from sandfork.images.progress import tell_nobody
from sandfork.images.state import ImageState, Kind
from sandfork.images.store import Store
from sandfork.serve_remote import open_remote
from sandfork.serve_shelf import DiskShelf

CONFIG = Config(remote=Remote(bucket="slow", connect_s=60.0, read_s=300.0, tries=20))


async def test_a_slow_bucket_is_read_by_one_thread_however_many_ask(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    go, read = threading.Event(), []

    def slowly(remote: Any, kind: Kind) -> Sequence[ImageState]:
        read.append(kind)
        go.wait()
        return ()

    monkeypatch.setattr(serve_shelf, "remote_states", slowly)
    shelf = DiskShelf(CONFIG, tmp_path)
    asked = [asyncio.create_task(shelf.remote(kind)) for kind in (Kind.SNAPSHOT, Kind.ROOTFS) for _ in range(50)]
    await asyncio.sleep(0)
    asked[0].cancel()  # one that goes takes the answer from nobody
    go.set()
    assert await asyncio.gather(*asked[1:]) == [()] * 99
    assert sorted(read) == [Kind.ROOTFS, Kind.SNAPSHOT]
    assert await shelf.remote(Kind.ROOTFS) == ()
    assert len(read) == 3, "what was read is not kept"


async def test_a_client_is_told_soon_of_a_bucket_that_does_not_answer_however_patient_transfers_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(serve_shelf, "remote_states", lambda remote, kind: (remote.settings,))
    (settings,) = await DiskShelf(CONFIG, tmp_path).remote(Kind.ROOTFS)
    assert isinstance(settings, BucketSettings)
    assert (settings.connect_s + settings.read_s) * settings.tries <= 20
    settings = open_remote(CONFIG).settings
    assert (settings.connect_s, settings.read_s, settings.tries) == (60.0, 300.0, 20), "the control: a transfer"


def test_an_image_that_is_damaged_is_told_as_failed_beside_the_others(tmp_path: Path) -> None:
    (tmp_path / "tree/usr").mkdir(parents=True)
    store = Store(tmp_path)
    made = [import_directory(store, name, (), tmp_path / "tree", Bounds(), tell_nobody) for name in ("a", "b", "c")]
    (tmp_path / "tree/usr/file").touch()
    import_directory(store, "d", (), tmp_path / "tree", Bounds(), tell_nobody)
    (tmp_path / "manifests/b.json").write_bytes(b"{")
    store.blob(store.get("d").digest).unlink()
    states = DiskShelf(CONFIG, tmp_path).local(Kind.ROOTFS)
    assert [(each.name, each.making.status.value) for each in states] == [
        ("a", "ready"), ("b", "failed"), ("c", "ready"), ("d", "failed"),
    ]  # fmt: skip
    assert "manifests/b.json: this is no manifest" in states[1].making.error
    assert "the store has no content sha256:" in states[3].making.error
    assert made[0].digest == states[0].digest  # type: ignore[union-attr]


async def test_all_that_ask_are_told_why_it_failed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(remote: Any, kind: Kind) -> Sequence[ImageState]:
        raise RemoteFailed("it is not there")

    monkeypatch.setattr(serve_shelf, "remote_states", broken)
    shelf = DiskShelf(CONFIG, tmp_path)
    found = await asyncio.gather(*(shelf.remote(Kind.ROOTFS) for _ in range(3)), return_exceptions=True)
    assert [str(each) for each in found] == ["it is not there"] * 3
