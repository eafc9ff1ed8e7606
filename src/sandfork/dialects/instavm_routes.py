"""Where InstaVM's API answers: its routes, and those of its platform that this server says it does not have."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from sandfork.dialects import instavm_files as files
from sandfork.dialects import instavm_programs as programs
from sandfork.dialects import instavm_sessions as sessions
from sandfork.dialects import instavm_terminals as terminals
from sandfork.dialects import instavm_wire as wire
from sandfork.dialects.actions import FileReply
from sandfork.dialects.base import (
    ActionRoute,
    BodyMark,
    ExecRoute,
    LanguageState,
    QueryRoute,
    RawRequest,
    Reply,
    Route,
    TerminalRoute,
)
from sandfork.errors import NotSupported

ELSEWHERE = (
    "api-keys audit browser computeruse credits custom-domains recordings shares snapshots ssh-keys tapes templates"
    " users vaults volumes webhooks"
).split()
"""Parts of InstaVM's platform that are no code sandbox; this server says of each that it has none."""
OF_MACHINES = ("suspend", "resume", "clone", "snapshot", "stage-env", "volumes")


def refuse(raw: RawRequest, languages: Sequence[LanguageState]) -> NoReturn:
    """Refuse what is no part of a code sandbox. *Raises* NotSupported."""
    raise NotSupported("not available on this server: it runs code in sandboxes and has nothing of the platform around")


def _action(
    method: str,
    path: str,
    summary: str,
    parse: Callable[..., Any],
    render: Callable[..., Reply | FileReply],
    reply_type: Any,
    **more: Any,
) -> ActionRoute:
    return ActionRoute(
        method=method,
        path=path,
        summary=summary,
        parse=parse,
        render=render,
        reply_type=reply_type,
        at_root=True,
        **more,
    )


def _program_routes() -> tuple[Route, ...]:
    return (
        ExecRoute(
            path="/execute",
            summary="Run a program in a session and wait",
            parse=programs.parse_exec,
            render=programs.render_exec,
            body_type=wire.ExecBody,
            reply_type=wire.ExecReply,
            examples=wire.EXEC_EXAMPLES,
            at_root=True,
            mark=BodyMark(("command", "code"), certain=False),
        ),
        _action(
            "POST",
            "/execute_async",
            "Begin a program in a session",
            programs.parse_start,
            programs.render_started,
            wire.TaskStarted,
            body_type=wire.ExecBody,
            cost=1,
        ),
        _action(
            "GET",
            "/v1/executions/{task_id}",
            "Tell what came of a program so far",
            programs.parse_read,
            programs.render_task,
            wire.TaskReply,
        ),
    )


def _session_routes() -> tuple[Route, ...]:
    read, told = sessions.parse_read, wire.SessionReply
    return (
        _action(
            "POST",
            "/v1/sessions/session",
            "Make a session",
            sessions.parse_create,
            sessions.render_session,
            told,
            body_type=wire.SessionBody,
            examples=wire.SESSION_EXAMPLES,
            cost=1,
        ),
        _action(
            "GET",
            "/v1/sessions/status/{session_id}",
            "Tell whether a session is alive",
            read,
            sessions.render_status,
            wire.StatusReply,
        ),
        _action(
            "POST",
            "/kill",
            "End a session",
            sessions.parse_kill,
            sessions.render_killed,
            wire.KillReply,
            body_type=wire.KillBody,
        ),
    )


def _session_details_routes() -> tuple[Route, ...]:
    read, used = sessions.parse_read, sessions.render_usage
    told = sessions.render_session, wire.SessionReply
    return (
        _action("GET", "/v1/sessions/session/{session_id}", "Tell a session", read, *told),
        _action("GET", "/v1/sessions/usage/{session_id}", "Tell what a session used", read, used, wire.UsageReply),
    )


def _machine_routes() -> tuple[Route, ...]:
    read, told, listed = sessions.parse_read, wire.SessionReply, list[wire.SessionReply]
    return (
        _action(
            "POST",
            "/v1/vms",
            "Make a session, as a VM",
            sessions.parse_create_machine,
            sessions.render_session,
            told,
            body_type=wire.MachineBody,
            cost=1,
        ),
        _action(
            "GET",
            "/v1/sessions/sandboxes",
            "List sessions",
            sessions.parse_list,
            sessions.render_list,
            listed,
            query=("metadata", "limit"),
        ),
        _action("GET", "/v1/vms", "List all sessions", sessions.parse_list_machines, sessions.render_list, listed),
        _action("GET", "/v1/vms/{vm_id}", "Tell a session", read, sessions.render_session, told),
        _action(
            "DELETE", "/v1/vms/{vm_id}", "End a session", sessions.parse_delete, sessions.render_killed, wire.KillReply
        ),
    )


def _file_routes() -> tuple[Route, ...]:
    return (
        _action(
            "POST",
            "/upload",
            "Put a file into a session",
            files.parse_upload,
            files.render_uploaded,
            wire.UploadReply,
            upload=True,
            form=True,
            form_type=wire.UploadForm,
        ),
        _action(
            "POST",
            "/download",
            "Get a file of a session",
            files.parse_download,
            files.render_download,
            wire.DownloadReply,
            form=True,
            form_type=wire.DownloadForm,
        ),
    )


def _egress_routes(place: str) -> tuple[Route, ...]:
    path = f"/v1/egress/{place}"
    return (
        _action(
            "POST",
            path,
            "Say what a session may reach",
            sessions.parse_set_egress,
            sessions.render_egress,
            wire.EgressReply,
            body_type=wire.EgressBody,
        ),
        _action(
            "GET",
            path,
            "Tell what a session may reach",
            sessions.parse_read,
            sessions.render_egress,
            wire.EgressReply,
        ),
    )


def _terminal_routes(place: str) -> tuple[Route, ...]:
    path = f"/v1/{place}/pty/sessions"
    one = f"{path}/{{pty_id}}"
    told, read = wire.TerminalReply, terminals.parse_read
    return (
        _action(
            "POST",
            path,
            "Open a terminal",
            terminals.parse_open,
            terminals.render_terminal,
            told,
            body_type=wire.TerminalBody,
            cost=1,
        ),
        _action("GET", path, "List terminals", terminals.parse_list, terminals.render_list, wire.TerminalsReply),
        _action("GET", one, "Tell a terminal", read, terminals.render_terminal, told),
        _action("DELETE", one, "Close a terminal", terminals.parse_close, terminals.render_closed, wire.ClosedReply),
        _action(
            "POST",
            f"{one}/resize",
            "Resize a terminal",
            terminals.parse_resize,
            terminals.render_terminal,
            told,
            body_type=wire.SizeBody,
        ),
        TerminalRoute(
            path=f"/v1/{place}/pty/{{pty_id}}/connect",
            summary="Connect to a terminal",
            select=terminals.select,
            receive=terminals.receive,
            exited=terminals.tell_exit,
            at_root=True,
        ),
    )


def _refused_routes() -> tuple[Route, ...]:
    paths = [f"/v1/{name}{rest}" for name in ELSEWHERE for rest in ("", "/{rest:path}")]
    paths += [f"/v1/vms/{{vm_id}}/{name}" for name in OF_MACHINES]
    paths += ["/v1/sessions/app-url/{session_id}"]
    places = [(method, path) for path in paths for method in ("GET", "POST", "PUT", "PATCH", "DELETE")]
    places.append(("PATCH", "/v1/vms/{vm_id}"))
    return tuple(
        QueryRoute(method=method, path=path, summary="Refused", render=refuse, documented=False)
        for method, path in places
    )


ROUTES: tuple[Route, ...] = (
    *_program_routes(),
    *_session_routes(),
    *_session_details_routes(),
    *_machine_routes(),
    *_file_routes(),
    *_egress_routes("session/{session_id}"),
    *_egress_routes("vm/{vm_id}"),
    *_terminal_routes("sessions/{session_id}"),
    *_terminal_routes("vms/{vm_id}"),
    *_refused_routes(),
)
