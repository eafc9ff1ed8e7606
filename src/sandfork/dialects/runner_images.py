"""Runner's API: root file system images and snapshots.

What its document leaves open: an entry also tells its `name`, how far its making is (`status`, `progress`, `error`) and
where it is from (`source`); one that is being made for the first time has no size yet. `GET` and `DELETE` of one name
are ours, and so is `name` of a snapshot, which is called as its language without one.

Of a snapshot `mem_size` is the memory that its sandboxes may use, and `vmstate_size` the size of what is kept: in the
process tier a document of what the template is made of, for that has no machine state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any
from urllib.parse import parse_qs

import msgspec
from msgspec import Meta

from sandfork.dialects.actions import Action, CreateRootfs, CreateSnapshot, DeleteImage, ListImages, ReadImage
from sandfork.dialects.base import LANGUAGE, ActionRoute, Bounds, Example, RawRequest, Reply
from sandfork.dialects.fields import decode_body
from sandfork.errors import InvalidRequest
from sandfork.images.state import ImageState, Kind, Making, RootfsState, SnapshotState

Language = Annotated[str, Meta(min_length=1, description="The language.", extra_json_schema=LANGUAGE)]
MAX_MB = 1 << 24
TRUTH = {"true": True, "1": True, "false": False, "0": False, "": False}


class RootfsBody(msgspec.Struct, frozen=True):
    """An image to make."""

    language: Language
    size_mb: Annotated[int, Meta(ge=16, le=MAX_MB, description="The most that its files may take, in MiB.")] = 1024


class SnapshotBody(msgspec.Struct, frozen=True):
    """A snapshot to make."""

    language: Language
    mem_mb: Annotated[int, Meta(ge=8, le=MAX_MB, description="The memory of its sandboxes, in MiB.")] = 512
    vcpus: Annotated[
        int, Meta(ge=1, le=1024, description="The processors that one of its sandboxes may use at a time.")
    ] = 1
    name: Annotated[str, Meta(description="What to call it; its language if not given.")] = ""


class StartedReply(msgspec.Struct, frozen=True):
    """The making has begun; the lists tell how far it is."""

    message: str
    language: str


class Progress(msgspec.Struct, frozen=True):
    """What every entry tells; `progress` is in percent, `error` why it could not be made, `step` what is done now."""

    name: str
    source: Annotated[str, Meta(description="`local` or `s3`.")]
    status: Annotated[str, Meta(description="`ready`, `building` or `failed`.")]
    progress: int
    error: str | None
    step: str | None
    created: str | None


class RootfsEntry(Progress, frozen=True):
    """An image; `size` in bytes, `path` where it is."""

    language: str
    size: int
    path: str
    languages: list[str]
    digest: str | None


class SnapshotEntry(Progress, frozen=True):
    """A snapshot; `vmstate_size` is what is kept of it, `mem_size` what its sandboxes may use, both in bytes."""

    language: str
    vmstate_size: int
    mem_size: int
    vcpus: int
    template: str | None
    toolchain: str | None
    revision: int
    image: str | None


class RootfsReply(msgspec.Struct, frozen=True):
    """Root file system images."""

    rootfs: list[RootfsEntry]


class SnapshotsReply(msgspec.Struct, frozen=True):
    """Snapshots."""

    snapshots: list[SnapshotEntry]


class RemovedReply(msgspec.Struct, frozen=True):
    """What was removed."""

    message: str
    name: str


_rootfs_body = msgspec.json.Decoder(RootfsBody)
_snapshot_body = msgspec.json.Decoder(SnapshotBody)
_encode = msgspec.json.Encoder().encode


def parse_rootfs(raw: RawRequest, bounds: Bounds) -> Action:
    """Read what image to make. *Raises* InvalidRequest."""
    body = decode_body(_rootfs_body, raw.body)
    return CreateRootfs(body.language, body.size_mb)


def parse_snapshot(raw: RawRequest, bounds: Bounds) -> Action:
    """Read what snapshot to make. *Raises* InvalidRequest."""
    body = decode_body(_snapshot_body, raw.body)
    return CreateSnapshot(body.name, body.language, body.mem_mb, body.vcpus)


def render_started(action: Action, came: bool, request_id: str) -> Reply:
    """Tell that it has begun, or is under way since an earlier call, in the caller's own word for the language."""
    assert isinstance(action, CreateRootfs | CreateSnapshot)
    what = "rootfs" if isinstance(action, CreateRootfs) else "snapshot"
    how = "started" if came else "is under way already"
    return Reply(_encode(StartedReply(f"{what} creation {how}", action.language)), 202)


def parse_list(kind: Kind) -> Any:
    """Return what reads which list of a kind is wanted."""

    def parse(raw: RawRequest, bounds: Bounds) -> Action:
        return ListImages(kind, _remote(raw.query))

    return parse


def _remote(query: bytes) -> bool:
    """Return whether the query asks for the bucket's. *Raises* InvalidRequest."""
    value = parse_qs(query.decode("utf-8", "replace"), keep_blank_values=True).get("remote", ["false"])[-1].lower()
    if value not in TRUTH:
        raise InvalidRequest("remote", "must be true or false")
    return TRUTH[value]


def render_list(action: Action, came: Sequence[ImageState], request_id: str) -> Reply:
    """List images, or snapshots."""
    assert isinstance(action, ListImages)
    if action.kind is Kind.ROOTFS:
        return Reply(_encode(RootfsReply([rootfs_entry(each) for each in came if isinstance(each, RootfsState)])))
    return Reply(_encode(SnapshotsReply([snapshot_entry(each) for each in came if isinstance(each, SnapshotState)])))


def render_one(action: Action, came: ImageState, request_id: str) -> Reply:
    """Tell one."""
    return Reply(_encode(rootfs_entry(came) if isinstance(came, RootfsState) else snapshot_entry(came)))


def render_removed(action: Action, came: None, request_id: str) -> Reply:
    """Tell that it is gone."""
    assert isinstance(action, DeleteImage)
    return Reply(_encode(RemovedReply(f"{action.kind} removed", action.name)))


def rootfs_entry(state: RootfsState) -> RootfsEntry:
    """Return an image as it is on the wire; an image of several languages is called by its own name."""
    language = state.languages[0] if len(state.languages) == 1 else state.name
    return RootfsEntry(
        *_progress(state.name, state.source, state.making, state.created),
        public_name(language),
        state.size_bytes,
        state.path,
        [public_name(each) for each in state.languages],
        state.digest or None,
    )


def snapshot_entry(state: SnapshotState) -> SnapshotEntry:
    """Return a snapshot as it is on the wire."""
    return SnapshotEntry(
        *_progress(state.name, state.source, state.making, state.created),
        public_name(state.language),
        state.state_bytes,
        state.mem_bytes,
        state.vcpus,
        state.template or None,
        state.toolchain or None,
        state.revision,
        state.image or None,
    )


def _progress(
    name: str, source: str, making: Making, created: str
) -> tuple[str, str, str, int, str | None, str | None, str | None]:
    error, step = making.error or None, making.now or None
    return name, source, str(making.status), making.percent, error, step, created or None


NAMES = {"node": "nodejs"}
"""What this API calls a language, where the catalogue calls it otherwise."""


def public_name(language: str) -> str:
    """Return what this API calls a language."""
    return NAMES.get(language, language)


def _routes(kind: Kind, path: str, what: str, list_type: type[Any], one_type: type[Any]) -> tuple[ActionRoute, ...]:
    """Return the routes of a kind but the one that makes one."""

    def parse_read(raw: RawRequest, bounds: Bounds) -> Action:
        return ReadImage(kind, raw.params["name"])

    def parse_delete(raw: RawRequest, bounds: Bounds) -> Action:
        return DeleteImage(kind, raw.params["name"])

    return (
        ActionRoute(
            method="GET",
            path=path,
            summary=f"List {what}",
            parse=parse_list(kind),
            render=render_list,
            reply_type=list_type,
            query=("remote",),
            at_root=True,
        ),
        _route("GET", f"{path}/{{name}}", f"Get one of the {what}", parse_read, render_one, one_type),
        _route("DELETE", f"{path}/{{name}}", f"Remove one of the {what}", parse_delete, render_removed, RemovedReply),
    )


def _route(method: str, path: str, summary: str, parse: Any, render: Any, reply_type: type[Any]) -> ActionRoute:
    return ActionRoute(
        method=method,
        path=path,
        summary=summary,
        parse=parse,
        render=render,
        reply_type=reply_type,
        at_root=True,
    )


def _creation(path: str, what: str, parse: Any, body_type: type[Any], example: bytes) -> ActionRoute:
    return ActionRoute(
        method="POST",
        path=path,
        summary=f"Create one of the {what}",
        parse=parse,
        render=render_started,
        body_type=body_type,
        reply_type=StartedReply,
        status=202,
        cost=1,
        examples=(Example("Python", example),),
        at_root=True,
    )


ROOTFS, SNAPSHOTS = "/api/v1/rootfs", "/api/v1/snapshots"
ROUTES = (
    *_routes(Kind.ROOTFS, ROOTFS, "rootfs images", RootfsReply, RootfsEntry),
    _creation(ROOTFS, "rootfs images", parse_rootfs, RootfsBody, b'{"language": "python", "size_mb": 1024}'),
    *_routes(Kind.SNAPSHOT, SNAPSHOTS, "snapshots", SnapshotsReply, SnapshotEntry),
    _creation(
        SNAPSHOTS, "snapshots", parse_snapshot, SnapshotBody, b'{"language": "python", "mem_mb": 512, "vcpus": 1}'
    ),
)
