"""The jobs that make images and snapshots, and a request that names a snapshot."""

from __future__ import annotations

import asyncio
import errno
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sandfork.engine.images import ImageBounds, ImageDesk
from sandfork.errors import (
    Forbidden,
    InvalidRequest,
    LanguageGone,
    NotSupported,
    Overloaded,
    SnapshotConflict,
    SnapshotNotFound,
    StoreUnusable,
    UnknownLanguage,
)
from sandfork.images.manifest import Manifest, Source
from sandfork.images.snapshots import Pin, Snapshot, SnapshotStore, decode_snapshot, encode_snapshot, pin
from sandfork.images.state import Kind, Status
from sandfork.languages.catalogue import Catalogue
from sandfork.model import Command, ExecRequest, LimitsOverride, SessionUse, Snippet
from sandfork.serve_builder import Order
from sandfork.serve_workshop import make_snapshot
from tests.support.kept_images import CREATED, MemoryImages


async def execute(*_: Any) -> Any:
    raise AssertionError("nothing is run here")


def named(name: str, **changes: Any) -> ExecRequest:
    values: dict[str, Any] = {"program": Snippet("python", "1"), "limits": LimitsOverride(wall_s=4.0), **changes}
    return ExecRequest(snapshot=name, **values)


def kept(**changes: Any) -> MemoryImages:
    values: dict[str, Any] = {"name": "warm", "language": "python", "template": "python", "mem_mb": 64, "vcpus": 2}
    images = MemoryImages()
    images.snapshots["warm"] = Snapshot(**{**values, "created": CREATED, **changes})
    return images


async def test_closing_ends_what_is_under_way() -> None:
    images = MemoryImages()
    images.go.clear()
    desk = images.desk(execute)
    desk.build("python", 1024)
    await asyncio.sleep(0)
    await desk.close()
    assert images.ended_early == 1
    assert images.rootfs == {}


async def test_removing_one_that_is_being_made_gives_it_up() -> None:
    images = MemoryImages()
    images.go.clear()
    desk = images.desk(execute)
    desk.build("py", 1024)
    await asyncio.sleep(0)
    await desk.remove(Kind.ROOTFS, "python")
    assert (images.ended_early, await desk.list(Kind.ROOTFS)) == (1, [])


async def test_progress_is_told_and_one_that_is_there_stays_usable_meanwhile() -> None:
    images = MemoryImages()
    desk = images.desk(execute)
    desk.build("python", 1024)
    first = await desk.settled(Kind.ROOTFS, "python")
    images.go.clear()
    desk.build("python", 1024)
    await asyncio.sleep(0)
    assert images.tell is not None
    images.tell(42.5, "unpacking")
    state = await desk.read(Kind.ROOTFS, "python")
    assert (state.making.status, state.making.percent) == (Status.BUILDING, 42)
    assert state.digest == first.digest  # type: ignore[union-attr]
    await desk.close()


async def test_only_so_many_are_made_at_once_and_a_name_only_once() -> None:
    images = MemoryImages()
    images.go.clear()
    desk = images.desk(execute, ImageBounds(under_way=1))
    assert [desk.build("python", 1024), desk.build("python", 1024)] == [True, False]
    with pytest.raises(Overloaded):
        desk.build("node", 1024)
    await desk.close()


async def test_an_image_is_not_made_where_none_can_be_or_may_be() -> None:
    images = MemoryImages()
    images.lacking = "there is no mmdebstrap"
    with pytest.raises(NotSupported, match="no mmdebstrap"):
        images.desk(execute).build("python", 1024)
    forbidden = MemoryImages().desk(execute, ImageBounds(rootfs=False))
    with pytest.raises(Forbidden, match=r"images\.build"):
        forbidden.build("python", 1024)
    with pytest.raises(Forbidden, match=r"images\.build"):
        await forbidden.remove(Kind.ROOTFS, "python")


async def test_an_image_can_be_made_of_a_language_that_is_not_on_offer() -> None:
    images = MemoryImages()
    offered = Catalogue.load().only(lambda each: each.name == "python")
    desk = ImageDesk(offered, images, images, execute, every=Catalogue.load())
    assert desk.build("lua", 1024)
    assert (await desk.settled(Kind.ROOTFS, "lua")).making.status is Status.READY
    with pytest.raises(UnknownLanguage):
        desk.snapshot("", "lua", 64, 1)


async def test_a_language_that_is_gone_is_told_to_be_gone_and_one_that_never_was_is_unknown() -> None:
    images, every = MemoryImages(), Catalogue.load()
    desk = ImageDesk(every.only(lambda each: each.name in ("python", "node")), images, images, execute, every=every)
    desk.adopt(every.only(lambda each: each.name in ("python", "bash")))
    desk.adopt(every.only(lambda each: each.name == "python"))
    for gone in ("node", "javascript", "bash"):
        with pytest.raises(LanguageGone, match=f"{gone} is no longer on this server"):
            desk.snapshot("", gone, 64, 1)
    with pytest.raises(UnknownLanguage):
        desk.snapshot("", "lua", 64, 1)


async def test_of_what_could_not_be_made_only_the_last_are_told() -> None:
    """Else a caller could have the server remember names without end."""
    images = MemoryImages()
    images.failure = SnapshotConflict("no")
    desk = images.desk(execute, ImageBounds(failed=3))
    names = ("python", "node", "bash", "sh", "awk")
    for name in names:
        desk.build(name, 1024)
        assert (await desk.settled(Kind.ROOTFS, name)).making.status is Status.FAILED
    assert {state.name for state in await desk.list(Kind.ROOTFS)} == set(names[-3:])
    await desk.close()


def test_a_request_runs_in_its_snapshots_template_under_its_limits() -> None:
    asked = kept().recall().apply(named("warm", program=Snippet("py", "1")))
    assert (asked.template, asked.program) == ("python", Snippet("python", "1"))
    assert asked.limits == LimitsOverride(wall_s=4.0, memory_bytes=64 << 20, cpus=2)
    lower = LimitsOverride(wall_s=4.0, cpu_s=1.0, memory_bytes=32 << 20, cpus=0.5)
    assert kept().recall().apply(named("warm", limits=lower)).limits == lower


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (named("gone"), SnapshotNotFound),
        (named("warm", program=Snippet("node", "1")), InvalidRequest),
        (named("warm", program=Command(("true",))), InvalidRequest),
        (named("warm", template="python-numpy"), InvalidRequest),
        (named("warm", session=SessionUse("native", "x")), InvalidRequest),
        (named("warm", limits=LimitsOverride(memory_bytes=65 << 20)), Forbidden),
        (named("warm", limits=LimitsOverride(cpus=2.5)), Forbidden),
    ],
)
def test_what_does_not_fit_its_snapshot_is_refused(request_: ExecRequest, error: type[Exception]) -> None:
    with pytest.raises(error):
        kept().recall().apply(request_)


def test_a_server_that_gives_fewer_processors_than_a_snapshot_was_made_for_gives_those() -> None:
    assert kept().recall(most_cpus=0.5).apply(named("warm")).limits.cpus == 0.5


def test_a_snapshot_whose_toolchain_changed_is_refused(tmp_path: Path) -> None:
    program = tmp_path / "python3"
    program.write_bytes(b"one")
    recall = kept(pins=pin([str(program)])).recall(python_that_needs(program))
    recall.apply(named("warm"))
    program.write_bytes(b"other")
    with pytest.raises(SnapshotConflict, match="create it again"):
        recall.apply(named("warm"))
    program.unlink()
    with pytest.raises(SnapshotConflict, match="create it again"):
        recall.apply(named("warm"))


@pytest.mark.parametrize(
    ("pinned", "now", "told"),
    [
        ("sha256:1", "python@sha256:2", "image python@sha256:2"),
        ("sha256:1", "", "the host's"),
        ("", "x@sha256:1", "x@"),
    ],
)
def test_a_snapshot_of_another_image_is_refused(pinned: str, now: str, told: str) -> None:
    digest = pinned and f"sha256:{pinned[-1] * 64}"
    recall = kept(image=digest).recall()
    recall.adopt(Catalogue.load().on_images({"python": f"any@{digest}"} if digest else {}))
    recall.apply(named("warm"))
    recall.adopt(Catalogue.load().on_images({"python": now} if now else {}))
    with pytest.raises(SnapshotConflict, match=f"{told}.*create it again"):
        recall.apply(named("warm"))


def test_on_an_image_a_snapshot_pins_that_and_on_the_host_the_programs(tmp_path: Path) -> None:
    bash = Catalogue.load().find("bash")
    assert bash is not None
    order = Order(1, "snapshot", language="bash", name="b", mem_mb=64, vcpus=1)
    digest = f"sha256:{'a' * 64}"
    image = Manifest("b", ("bash",), digest, 1, 1, CREATED, Source("directory"))
    on_image = make_snapshot(SnapshotStore(tmp_path), bash, image, order)
    assert (on_image.image, on_image.pins) == (digest, ())
    on_host = make_snapshot(SnapshotStore(tmp_path), bash, None, order)
    assert (on_host.image, [each.path for each in on_host.pins]) == ("", ["/bin/bash"])


@pytest.mark.parametrize(
    ("language", "template"), [("bash", "command@any"), ("coconut", "python@any"), ("python", "python")]
)
def test_a_snapshot_runs_on_its_image_whatever_the_template_is_called_there(
    language: str, template: str, tmp_path: Path
) -> None:
    """A template that others use elsewhere has a name of its own on an image, which the snapshot was not made of."""
    digest = f"sha256:{'1' * 64}"
    image = Manifest("any", (language,), digest, 1, 1, CREATED, Source("build"))
    found = Catalogue.load().find(language)
    assert found is not None
    images = MemoryImages()
    images.snapshots["warm"] = make_snapshot(
        SnapshotStore(tmp_path), found, image, Order(1, "snapshot", name="warm", mem_mb=64, vcpus=1)
    )
    recall = images.recall(Catalogue.load().on_images({language: f"any@{digest}"}))
    request = named("warm", program=Snippet(language, "1"))
    assert recall.apply(request).template == template
    assert recall.apply(replace(request, template=template)).template == template
    with pytest.raises(InvalidRequest, match="template"):
        recall.apply(replace(request, template="node"))


def python_that_needs(path: Path) -> Catalogue:
    python = Catalogue.load().find("python")
    assert python is not None
    return Catalogue((replace(python, needs=(str(path),)),))


@pytest.mark.parametrize("path", ["/dev/zero", "/etc/shadow", "FIFO"])
def test_a_document_has_no_file_read_that_is_no_program_of_its_language(path: str, tmp_path: Path) -> None:
    """It may be from a bucket: reading what it names could last for ever, and the answer tells what is in it."""
    os.mkfifo(tmp_path / "fifo")
    named_by_it = Pin(path.replace("FIFO", str(tmp_path / "fifo")), "0" * 64)
    with pytest.raises(SnapshotConflict, match="no program of python"):
        kept(pins=(named_by_it,)).recall().apply(named("warm"))


@pytest.mark.parametrize("field", ["toolchain", "created", "preload", "pins"])
def test_a_document_writes_nothing_but_text_on_a_terminal(field: str) -> None:
    clear, plain = "\x1b[2J", encode_snapshot(kept(pins=(Pin("/a", "0" * 64),), preload=("a",)).snapshots["warm"])
    decode_snapshot(plain, "warm")
    document = msgspec.json.decode(plain)
    value = {"preload": [clear], "pins": [{"path": f"/{clear}", "sha256": "0" * 64}]}.get(field, clear)
    with pytest.raises(SnapshotConflict):
        decode_snapshot(msgspec.json.encode({**document, field: value}), "warm")


def test_a_snapshot_is_kept_read_and_removed(tmp_path: Path) -> None:
    store, snapshot = SnapshotStore(tmp_path), kept().snapshots["warm"]
    store.put(snapshot)
    assert (store.get("warm"), store.names()) == (snapshot, ("warm",))
    assert [path.name for path in (tmp_path / "snapshots").iterdir()] == ["warm.json"]
    store.remove("warm")
    for missing in (store.get, store.remove):
        with pytest.raises(SnapshotNotFound):
            missing("warm")
        with pytest.raises(InvalidRequest):
            missing("../warm")


def test_what_was_kept_or_removed_is_so_after_a_crash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call ends with a sync of the directory, made when the name is in it, or is in it no more."""
    synced: list[tuple[str, bool]] = []
    sync = os.fsync

    def note(fd: int) -> None:
        sync(fd)
        synced.append((os.readlink(f"/proc/self/fd/{fd}"), (tmp_path / "snapshots/warm.json").exists()))

    monkeypatch.setattr(os, "fsync", note)
    store = SnapshotStore(tmp_path)
    store.put(kept().snapshots["warm"])
    assert synced[0] == (str(tmp_path), False)
    assert synced[-1] == (str(tmp_path / "snapshots"), True)
    store.remove("warm")
    assert synced[-1] == (str(tmp_path / "snapshots"), False)


def test_a_store_that_cannot_be_used_is_told_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def told(reason: str) -> str:
        return rf"^the store of snapshots in .*/snapshots: {reason}$"

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        with pytest.raises(StoreUnusable, match=told("No space left on device")):
            SnapshotStore(tmp_path).put(kept().snapshots["warm"])
    assert list((tmp_path / "snapshots").iterdir()) == []
    (tmp_path / "file").touch()
    store = SnapshotStore(tmp_path / "file")
    for use in (store.names, lambda: store.get("warm"), lambda: store.remove("warm")):
        with pytest.raises(StoreUnusable, match=told("Not a directory")):
            use()


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100_000,
        b" " * 70_000,
        encode_snapshot(kept(name="other").snapshots["warm"]),
        encode_snapshot(kept().snapshots["warm"]).replace(b'"mem_mb": 64', b'"mem_mb": -1'),
        encode_snapshot(kept().snapshots["warm"]).replace(b'"python"', b'"../python"'),
    ],
)
def test_a_document_from_elsewhere_that_is_none_is_refused(document: bytes) -> None:
    with pytest.raises(SnapshotConflict):
        decode_snapshot(document, "warm")
