"""From what isol8's clients ask for to an execution: the program, its files, its limits, its session."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TypeVar

from msgspec import UNSET

from sandfork.dialects import fields
from sandfork.dialects.base import Bounds
from sandfork.dialects.isol8_wire import SIZE_PATTERN, ExecBody, Options, RunRequest
from sandfork.errors import Forbidden, InvalidRequest, NotSupported
from sandfork.model import (
    Command,
    ExecRequest,
    InputFile,
    LimitsOverride,
    SessionSpec,
    SessionUse,
    Snippet,
)

T = TypeVar("T", int, float)

SPACE = "isol8"
WORK_DIR = "/sandbox"
SHELL = "bash"
"""What a command is in, where nothing else is named."""
TIMEOUT_MS = 30_000
IDLE_S = 3600.0
LEAST_MEMORY_BYTES = 4 << 20
LEAST_DISK_BYTES = 64 << 10

_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}
_SIZE = re.compile(SIZE_PATTERN)
_GLOB = re.compile(r"[*?\[]")
_NO_OPTIONS = Options()


def read_run(body: ExecBody, bounds: Bounds, *, in_session: bool = True) -> ExecRequest:
    """Return the execution a body asks for. *Raises* InvalidRequest, Forbidden, NotSupported."""
    asked, options = body.request, body.options or _NO_OPTIONS
    _refuse_unsupported(asked, options)
    program = _program(asked, bounds)
    each, all_together = _limits(asked, options, bounds)
    session = None
    if in_session and body.session_id:
        session = SessionUse(SPACE, body.session_id, _session(runtime_of(asked), all_together), fresh=True)
    else:
        each = _joined(each, all_together)
    secrets = options.secrets or {}
    return ExecRequest(
        program=program,
        files=tuple(InputFile(path, content.encode()) for path, content in (asked.files or {}).items()),
        stdin=(asked.stdin or "").encode(),
        env=tuple(((asked.env or {}) | secrets).items()),
        limits=each,
        network=options.network or "none",
        session=session,
        collect=tuple(_GLOB.sub(r"[\g<0>]", path) for path in asked.output_paths or ()),
        packages=tuple(asked.install_packages or ()),
        work_dir=_work_dir(asked.workdir),
        secrets=tuple(secrets.values()),
    )


def runtime_of(asked: RunRequest) -> str:
    """Return the runtime a run is in, as its client calls it."""
    return SHELL if asked.runtime is UNSET else asked.runtime


def _session(runtime: str, limits: LimitsOverride) -> SessionSpec:
    return SessionSpec(language=runtime, one_language=True, limits=limits, idle_s=IDLE_S)


def _refuse_unsupported(asked: RunRequest, options: Options) -> None:
    if asked.code_url:
        raise NotSupported("request.codeUrl: this server fetches no code; send it as request.code")
    if asked.setup_script:
        raise NotSupported("request.setupScript: is not available on this server; run it first, in the same session")
    if options.image:
        raise Forbidden("options.image: is above the server's ceiling: programs see its own /usr, read-only")
    if options.readonly_root_fs is False:
        raise Forbidden("options.readonlyRootFs: false is above the server's ceiling: the root is always read-only")
    if options.security is not None and options.security.seccomp not in (None, "strict"):
        raise Forbidden("options.security.seccomp: is above the server's ceiling of 'strict'")


def _program(asked: RunRequest, bounds: Bounds) -> Snippet | Command:
    cmd = None if asked.cmd is UNSET or (isinstance(asked.cmd, str) and not asked.cmd.strip()) else asked.cmd
    if asked.code is UNSET:
        if cmd is None:
            raise InvalidRequest("request.code", "is required, or request.cmd in its place")
        return Command(("/bin/bash", "-c", cmd) if isinstance(cmd, str) else tuple(cmd))
    if cmd is not None:
        raise InvalidRequest("request.cmd", "cannot be given together with request.code")
    if not asked.runtime:
        raise InvalidRequest("request.runtime", "is required")
    return Snippet(asked.runtime, fields.check_code(asked.code, "request.code", bounds.max_code_bytes))


def _limits(asked: RunRequest, options: Options, bounds: Bounds) -> tuple[LimitsOverride, LimitsOverride]:
    """Return the limits that each execution has for itself, and those that all of a session have together."""
    ceilings = bounds.ceilings
    wall_s = min((asked.timeout_ms or options.timeout_ms or TIMEOUT_MS) / 1000, bounds.max_wall_s)
    memory_bytes = _size(options.memory_limit, "options.memoryLimit", LEAST_MEMORY_BYTES)
    return (
        LimitsOverride(
            wall_s=wall_s,
            output_bytes=_at_most(options.max_output_size, ceilings.output_bytes, "options.maxOutputSize"),
        ),
        LimitsOverride(
            memory_bytes=_at_most(memory_bytes, ceilings.memory_bytes, "options.memoryLimit"),
            pids=_at_most(options.pids_limit, ceilings.pids, "options.pidsLimit"),
            disk_bytes=_disk_bytes(options, ceilings.disk_bytes),
            cpus=_at_most(options.cpu_limit, ceilings.cpus, "options.cpuLimit"),
        ),
    )


def _joined(one: LimitsOverride, other: LimitsOverride) -> LimitsOverride:
    return replace(other, wall_s=one.wall_s, output_bytes=one.output_bytes)


def _disk_bytes(options: Options, ceiling: int) -> int | None:
    sizes = [
        _size(text, f"options.{name}", LEAST_DISK_BYTES)
        for name, text in (("sandboxSize", options.sandbox_size), ("tmpSize", options.tmp_size))
    ]
    named = [size for size in sizes if size is not None]
    return _at_most(sum(named), ceiling, "options.sandboxSize and tmpSize") if named else None


def _size(text: str | None, field: str, least: int) -> int | None:
    if text is None:
        return None
    match = _SIZE.fullmatch(text)
    if match is None:
        raise InvalidRequest(field, "must be a number and its unit, such as 512m")
    size = int(float(match[1]) * (1 << _UNITS[match[2].lower()]))
    if size < least:
        raise InvalidRequest(field, f"must be at least {least} bytes")
    return size


def _at_most(asked: T | None, ceiling: T, field: str) -> T | None:
    if asked is not None and asked > ceiling:
        raise Forbidden(f"{field}: {asked} is above the ceiling of {ceiling}")
    return asked


def _work_dir(path: str | None) -> str:
    """Return a directory of the work directory, relative to it; "" for itself."""
    whole = whole_path(path or "")
    if ".." in whole.split("/") or f"{whole}/".partition(f"{WORK_DIR}/")[0]:
        raise InvalidRequest("request.workdir", "must be inside /sandbox")
    return whole.removeprefix(WORK_DIR).removeprefix("/")


def whole_path(path: str) -> str:
    """Return a path from the root, written in one way only."""
    parts = [part for part in path.split("/") if part not in ("", ".")]
    return "/".join(["", *parts] if path.startswith("/") else [WORK_DIR, *parts])
