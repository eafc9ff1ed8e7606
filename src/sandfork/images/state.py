"""What is told of images and snapshots: those that are there, those being made, and those of a bucket."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

LOCAL, REMOTE = "local", "s3"


class Kind(StrEnum):
    """What there is to make and to keep."""

    ROOTFS = "rootfs"
    SNAPSHOT = "snapshot"


class Status(StrEnum):
    """How far it is. One that is `ready` and being made anew is `building`, and can be used meanwhile."""

    READY = "ready"
    BUILDING = "building"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Making:
    """How far the making of something is: `percent` from 0 to 100, `error` why it failed, "" if it did not."""

    status: Status = Status.READY
    percent: int = 100
    error: str = ""
    now: str = ""


@dataclass(frozen=True, slots=True)
class RootfsState:
    """An image. `size_bytes` is that of its blob, 0 while there is none; `path` where that is."""

    name: str
    languages: tuple[str, ...]
    size_bytes: int = 0
    path: str = ""
    source: str = LOCAL
    digest: str = ""
    created: str = ""
    making: Making = field(default_factory=Making)


@dataclass(frozen=True, slots=True)
class SnapshotState:
    """A snapshot. `state_bytes` is what is kept of it, `mem_bytes` the memory that a sandbox of it may use."""

    name: str
    language: str
    state_bytes: int = 0
    mem_bytes: int = 0
    vcpus: int = 1
    source: str = LOCAL
    template: str = ""
    toolchain: str = ""
    image: str = ""
    created: str = ""
    revision: int = 0
    making: Making = field(default_factory=Making)


ImageState = RootfsState | SnapshotState
