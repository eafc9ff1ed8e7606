"""The Python side of native/messages.h: requests to the warden, events from it, frames on ctl and agent.

Sans-IO: packing and unpacking only. A test compares the constants and sizes here with the C header.
"""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum

SLOTS_MAX = 8192
ROOTS_MAX = 64
ZYGOTES_MAX = 256
MESSAGE_MAX = 131072
CPU_PERIOD_US = 100_000
SHARED_NETNS = 1
URGENT = 2
JOIN = 4
TERMINAL = 8
CLOSED_NEW_NETNS = 1
PROFILE_KEEP_GROUPS = 1


class Request(IntEnum):
    """What the server asks of the warden."""

    PROFILE = 1
    ROOT = 2
    ZYGOTE = 3
    SPAWN = 4
    LIMITS = 5
    CLOSE = 6
    RETIRE = 7
    SIGNAL = 8
    KILL = 9


class Event(IntEnum):
    """What the warden tells."""

    ROOT = 1
    ZYGOTE = 2
    ZYGOTE_END = 3
    SPAWN_FAILED = 4
    EXIT = 5
    LIMITS = 6
    CLOSED = 7
    WARDEN = 8
    KILLED = 9


class Kind(IntEnum):
    """How a template makes the program's process."""

    FORK = 1
    PARK = 2
    NONE = 3


STEPS = [
    "none",
    "clone",
    "cgroup",
    "cgroup_ns",
    "setns_root",
    "setns_net",
    "setns_user",
    "setns_cell",
    "setns_pid",
    "unshare",
    "tmpfs",
    "proc",
    "chdir",
    "fds",
    "rlimit",
    "capbset",
    "uid",
    "capset",
    "no_new_privs",
    "landlock",
    "seccomp",
    "exec",
    "run_frame",
    "code_file",
    "mount",
    "pivot_root",
    "netns",
    "userns",
    "order",
    "slot",
    "plan",
    "remount",
    "leftover",
    "work_dir",
    "zygote",
    "marker",
]

REQUEST = struct.Struct("=6I3Q6I")
EVENT = struct.Struct("=IIiIII5Q")
PROFILE = struct.Struct("=3Q6I")
FRAME = struct.Struct("=B3xI")
END = struct.Struct("=iIQQ")
FAIL = struct.Struct("=II")
NUMBER = struct.Struct("=Q")

INODE = struct.Struct("=QQ")

READY, RUN, STARTED, ENDED, FAILED, DISPLAY = b"!RSEXD"
PUT, GET, LIST, STAT, DELETE, SIZE, READ, WRITE, KILL, OK, ERR, DATA = b"PGLFUQrwKOZD"


def step_name(step: int) -> str:
    """Name a set-up step as the native core numbers it."""
    return STEPS[step] if step < len(STEPS) else f"step {step}"


@dataclass(frozen=True, slots=True)
class SlotLimits:
    """The limits the warden applies to a slot; `cpu_s` only where it must limit a process from outside.

    `cpu_quota_us` is the processor time of all processes in each CPU_PERIOD_US; 0: no quota.
    """

    memory_bytes: int
    disk_bytes: int
    inodes: int
    pids: int
    open_files: int
    cpu_s: int = 0
    cpu_quota_us: int = 0


NO_LIMITS = SlotLimits(0, 0, 0, 0, 0)


def request(
    op: Request,
    ident: int,
    *,
    root: int = 0,
    zygote: int = 0,
    profile: int = 0,
    kind: int = 0,
    limits: SlotLimits = NO_LIMITS,
    flags: int = 0,
    payload: bytes = b"",
) -> bytes:
    """Pack a request; *Raises* ValueError when it would not fit one message."""
    head = REQUEST.pack(
        op, ident, root, zygote, profile, kind, limits.memory_bytes, limits.disk_bytes, limits.inodes, limits.pids,
        limits.open_files, limits.cpu_s, limits.cpu_quota_us, len(payload), flags,
    )  # fmt: skip
    if len(head) + len(payload) > MESSAGE_MAX:
        raise ValueError(f"a request of {len(payload)} bytes does not fit a message of {MESSAGE_MAX}")
    return head + payload


@dataclass(frozen=True, slots=True)
class WardenEvent:
    """One event; `ident` is a slot, root or zygote, `status` as wait4 gives it."""

    op: int
    ident: int
    status: int
    step: int
    err: int
    flags: int
    utime_us: int
    stime_us: int
    maxrss_kb: int
    inblock: int
    oublock: int


def event(data: bytes) -> WardenEvent:
    """Unpack one event."""
    return WardenEvent(*EVENT.unpack(data))


def field(tag: bytes, value: bytes) -> bytes:
    """Pack one tag-length-value field."""
    return FRAME.pack(tag[0], len(value)) + value


def text(tag: bytes, value: str) -> bytes:
    """Pack a text field; its terminating NUL counts. The caller has refused NUL inside."""
    raw = value.encode("utf-8", "surrogateescape") + b"\0"
    return FRAME.pack(tag[0], len(raw)) + raw


def number(tag: bytes, value: int) -> bytes:
    """Pack a u64 field."""
    return FRAME.pack(tag[0], 8) + NUMBER.pack(value)


def program_fields(argv: Iterable[str], env: Iterable[str]) -> bytes:
    """Pack argv and NAME=value pairs as fields."""
    return b"".join([*(text(b"a", a) for a in argv), *(text(b"e", e) for e in env)])


def frame(kind: int, body: bytes = b"") -> bytes:
    """Pack a frame."""
    return FRAME.pack(kind, len(body)) + body


class FrameError(ValueError):
    """The peer sent what no honest peer sends."""


class FrameReader:
    """Cut a byte stream into frames. `max_len` bounds a body: a longer one is a FrameError, as soon as announced."""

    __slots__ = ("_buffer", "max_len")

    def __init__(self, max_len: int) -> None:
        self._buffer = bytearray()
        self.max_len = max_len

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Take bytes and yield every complete frame as (kind, body). *Raises* FrameError."""
        buffer = self._buffer
        buffer += data
        while len(buffer) >= FRAME.size:
            kind, length = FRAME.unpack_from(buffer)
            if length > self.max_len:
                raise FrameError(f"a frame of {length} bytes where at most {self.max_len} are allowed")
            end = FRAME.size + length
            if len(buffer) < end:
                return
            body = bytes(memoryview(buffer)[FRAME.size : end])
            del buffer[:end]
            yield kind, body


def agent_request(kind: int, path: str, value: int, content: bytes = b"") -> bytes:
    """Pack a request to a cell's agent; `path` is relative to the work directory. *Raises* OSError for no path."""
    try:
        raw = path.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise OSError(errno.EILSEQ, os.strerror(errno.EILSEQ), path) from None
    if len(raw) > 4096:
        raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG), path)
    return FRAME.pack(kind, 8 + len(raw) + len(content)) + NUMBER.pack(len(raw) << 48 | value) + raw + content
