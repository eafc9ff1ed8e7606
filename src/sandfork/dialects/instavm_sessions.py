"""InstaVM's sessions, which it also calls VMs and sandboxes: make, tell, list, kill, and what they may reach.

A session and its VM are one here, with one id. Labels keep their JSON types: they travel through the engine as the JSON
text of each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import parse_qs

import msgspec

from sandfork.dialects.actions import CreateSession, DeleteSession, ListSessions, ReadSession
from sandfork.dialects.base import Bounds, RawRequest, Reply
from sandfork.dialects.fields import decode_body, instant
from sandfork.dialects.instavm_wire import (
    EgressBody,
    EgressReply,
    KillBody,
    KillReply,
    MachineBody,
    SessionBody,
    SessionReply,
    StatusReply,
    UsageReply,
)
from sandfork.errors import CallerError, Forbidden, InvalidRequest, NotSupported
from sandfork.model import LimitsOverride, SessionSpec, SessionState

ACTIVE = "active"
DEFAULT_LIFETIME_S = 300.0
MAX_LABELS_BYTES = 16 << 10
MAX_LISTED = 1000
NO_NETWORK = "no sandbox of this server can reach a network; only a policy that allows nothing can be set"

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_session_body = msgspec.json.Decoder(SessionBody)
_machine_body = msgspec.json.Decoder(MachineBody)
_kill_body = msgspec.json.Decoder(KillBody)
_egress_body = msgspec.json.Decoder(EgressBody)
_labels = msgspec.json.Decoder(dict[str, Any])
_encode = msgspec.json.Encoder().encode


class Filtered(ListSessions, frozen=True):
    """A list of sessions that have these labels, at most `limit` of them."""

    labels: Mapping[str, Any] = {}
    limit: int = MAX_LISTED


def session_of(raw: RawRequest) -> str:
    """Return the id of the session that the path names, as such or as a VM."""
    return raw.params["session_id"] if "session_id" in raw.params else raw.params["vm_id"]


def check_session(name: str) -> str:
    """Return an id that a session can have. *Raises* CallerError."""
    if _NAME.fullmatch(name) is None:
        raise CallerError("Invalid session ID")
    return name


def default_spec(language: str | None, bounds: Bounds) -> SessionSpec:
    """Return what a session is that a first execution makes."""
    limits = LimitsOverride(disk_bytes=_disk_bytes(bounds))
    return SessionSpec(language=language, limits=limits, lifetime_s=DEFAULT_LIFETIME_S, idle_s=DEFAULT_LIFETIME_S)


def _disk_bytes(bounds: Bounds) -> int:
    return min(bounds.session_disk_bytes, bounds.ceilings.disk_bytes)


def parse_create(raw: RawRequest, bounds: Bounds) -> CreateSession:
    """Read a session to make. *Raises* InvalidRequest, Forbidden."""
    return CreateSession(_spec(decode_body(_session_body, raw.body), bounds))


def parse_create_machine(raw: RawRequest, bounds: Bounds) -> CreateSession:
    """Read a session to make, as a VM. *Raises* InvalidRequest, Forbidden, NotSupported."""
    body = decode_body(_machine_body, raw.body)
    own = set(MachineBody.__struct_fields__) - set(SessionBody.__struct_fields__)
    for name in sorted(own):
        if getattr(body, name):
            raise NotSupported(f"{name}: not available on this server")
    return CreateSession(_spec(body, bounds))


def _spec(body: SessionBody, bounds: Bounds) -> SessionSpec:
    if body.vcpu_count not in (None, 1, 2, 4, 6, 8):
        raise InvalidRequest("vcpu_count", "must be 1, 2, 4, 6 or 8")
    memory_bytes = None if body.memory_mb is None else body.memory_mb << 20
    ceiling = bounds.ceilings.memory_bytes
    if memory_bytes is not None and memory_bytes > ceiling:
        raise Forbidden(f"memory_mb: {body.memory_mb} is above the ceiling of {ceiling >> 20}")
    if body.vcpu_count is not None and body.vcpu_count > bounds.ceilings.cpus:
        raise Forbidden(f"vcpu_count: {body.vcpu_count} is above the ceiling of {bounds.ceilings.cpus:g}")
    labels = {name: _encode(value).decode() for name, value in (body.metadata or {}).items()}
    if sum(len(name) + len(value) for name, value in labels.items()) > MAX_LABELS_BYTES:
        raise InvalidRequest("metadata", f"is longer than {MAX_LABELS_BYTES} bytes")
    env = ((name, value if isinstance(value, str) else _encode(value).decode()) for name, value in _pairs(body.env))
    # A session of this API ends by its lifetime alone.
    lifetime_s = float(body.vm_lifetime_seconds)
    limits = LimitsOverride(memory_bytes=memory_bytes, disk_bytes=_disk_bytes(bounds), cpus=body.vcpu_count)
    return SessionSpec(limits=limits, env=tuple(env), lifetime_s=lifetime_s, idle_s=lifetime_s, metadata=labels)


def _pairs(env: Mapping[str, Any] | None) -> Sequence[tuple[str, Any]]:
    return tuple(env.items()) if env else ()


def parse_read(raw: RawRequest, bounds: Bounds) -> ReadSession:
    """Read which session is meant."""
    return ReadSession(session_of(raw))


def parse_list(raw: RawRequest, bounds: Bounds) -> Filtered:
    """Read which sessions are meant. *Raises* InvalidRequest."""
    query = parse_qs(raw.query.decode("latin-1"), keep_blank_values=True)
    limit = query.get("limit", ["100"])[-1]
    if not (limit.isascii() and limit.isdigit() and len(limit) < 5 and 1 <= int(limit) <= MAX_LISTED):
        raise InvalidRequest("query.limit", f"must be a whole number from 1 to {MAX_LISTED}")
    try:
        labels = _labels.decode(query.get("metadata", ["{}"])[-1])
    except (msgspec.MsgspecError, UnicodeError, RecursionError):
        raise InvalidRequest("query.metadata", "must be a JSON object") from None
    return Filtered(labels=labels, limit=int(limit))


def parse_list_machines(raw: RawRequest, bounds: Bounds) -> Filtered:
    """Read that all sessions are meant."""
    return Filtered()


def parse_kill(raw: RawRequest, bounds: Bounds) -> DeleteSession:
    """Read which session is to end. *Raises* InvalidRequest, CallerError."""
    return DeleteSession(check_session(decode_body(_kill_body, raw.body).session_id))


def parse_delete(raw: RawRequest, bounds: Bounds) -> DeleteSession:
    """Read which session is to end."""
    return DeleteSession(session_of(raw))


def parse_set_egress(raw: RawRequest, bounds: Bounds) -> ReadSession:
    """Read what a session is to reach. *Raises* InvalidRequest, and NotSupported for anything but nothing."""
    body = decode_body(_egress_body, raw.body)
    flags = (body.allow_public_repos, body.allow_package_managers, body.allow_http, body.allow_https)
    if any(flags) or body.allowed_domains or body.allowed_cidrs:
        raise NotSupported(NO_NETWORK)
    return ReadSession(session_of(raw))


def render_session(action: Any, state: SessionState, request_id: str) -> Reply:
    """Tell one session."""
    return Reply(_encode(_told(state)))


def render_list(action: Filtered, states: Sequence[SessionState], request_id: str) -> Reply:
    """List the sessions that were meant."""
    told = (_told(state) for state in states)
    wanted = [each for each in told if all(each.metadata.get(k, ...) == v for k, v in action.labels.items())]
    return Reply(_encode(wanted[: action.limit]))


def render_status(action: Any, state: SessionState, request_id: str) -> Reply:
    """Tell that a session is alive, and for how long."""
    return Reply(
        _encode(
            StatusReply(
                session_id=state.name,
                exists=True,
                vm_assigned=True,
                vm_alive=True,
                vm_status=ACTIVE,
                vm_id=state.name,
                uptime_seconds=_uptime_s(state),
                expires_in_seconds=round(max(0.0, state.expires_s - state.now_s), 3),
                created_at=instant(state.created_s),
            )
        )
    )


def render_usage(action: Any, state: SessionState, request_id: str) -> Reply:
    """Tell what a session used."""
    usage = state.usage
    return Reply(
        _encode(
            UsageReply(
                session_id=state.name,
                vm_id=state.name,
                executions=state.executions,
                cpu_time=round(usage.cpu_user_s + usage.cpu_system_s, 6),
                memory_peak_mb=_megabytes(usage.memory_peak_bytes),
                memory_current_mb=_megabytes(usage.memory_current_bytes),
                memory_mb=state.limits.memory_bytes >> 20,
                uptime_seconds=_uptime_s(state),
            )
        )
    )


def render_killed(action: DeleteSession, nothing: None, request_id: str) -> Reply:
    """Tell that a session ended."""
    return Reply(_encode(KillReply(action.name, action.name)))


def render_egress(action: ReadSession, state: SessionState, request_id: str) -> Reply:
    """Tell that a session reaches nothing."""
    return Reply(_encode(EgressReply(state.name, state.name)))


def _told(state: SessionState) -> SessionReply:
    return SessionReply(
        session_id=state.name,
        vm_id=state.name,
        status=ACTIVE,
        vm_status=ACTIVE,
        created_at=instant(state.created_s),
        expires_at=instant(state.expires_s),
        vm_lifetime_seconds=round(state.expires_s - state.created_s, 3),
        memory_mb=state.limits.memory_bytes >> 20,
        metadata={name: msgspec.json.decode(value) for name, value in state.metadata.items()},
    )


def _uptime_s(state: SessionState) -> float:
    return round(max(0.0, state.now_s - state.created_s), 3)


def _megabytes(size_bytes: int) -> float:
    return round(size_bytes / (1 << 20), 3)
