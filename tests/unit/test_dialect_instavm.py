"""InstaVM's API alone: what each request asks of the engine, and how each answer and each error looks on the wire."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import Any

import pytest

from sandfork.dialects import instavm_files as files
from sandfork.dialects import instavm_programs as programs
from sandfork.dialects import instavm_sessions as sessions
from sandfork.dialects import instavm_terminals as terminals
from sandfork.dialects.actions import (
    CloseTerminal,
    CreateSession,
    DeleteSession,
    Input,
    ListTerminals,
    Nothing,
    OpenTerminal,
    ReadFile,
    ReadSession,
    ReadTask,
    ReadTerminal,
    Resize,
    ResizeTerminal,
    WriteFile,
)
from sandfork.dialects.base import Bounds, FormFile, RawRequest, Reply
from sandfork.dialects.instavm import DIALECT, find_key, render_error
from sandfork.dialects.refusals import MethodNotAllowed, UnsupportedMedia
from sandfork.errors import (
    CallerError,
    FileNotInSandbox,
    Forbidden,
    ForkFailed,
    InvalidRequest,
    NotSupported,
    Overloaded,
    PayloadTooLarge,
    RateLimited,
    SandforkError,
    SessionNotFound,
    Unauthenticated,
    UnknownLanguage,
)
from sandfork.model import (
    Display,
    ExecRequest,
    ExecResult,
    Limits,
    LimitsOverride,
    Outcome,
    SessionSpec,
    SessionState,
    Snippet,
    TerminalSpec,
    TerminalState,
    Usage,
)
from tests.support.stub_engine import ended

ID = "019cf684-1fd5-73c0-9299-52253f9aa79c"
DISK = LimitsOverride(disk_bytes=256 << 20)
BOUNDS = Bounds(max_wall_s=300.0, max_code_bytes=100)
STATE = SessionState(
    name=ID,
    language="python",
    limits=Limits(memory_bytes=256 << 20),
    created_s=1_700_000_000.0,
    last_used_s=1_700_000_050.0,
    expires_s=1_700_000_300.0,
    busy=False,
    executions=3,
    usage=Usage(cpu_user_s=0.5, cpu_system_s=0.25, memory_peak_bytes=3 << 20, memory_current_bytes=1 << 20),
    metadata={"team": '"a"', "number": "7"},
    now_s=1_700_000_100.0,
)
TERMINAL = TerminalState("p1", ID, ("/bin/bash", "-lc", "ls -l"), 80, 24, 1_700_000_000.0, None)


@dataclass(frozen=True)
class Task:
    task_id: str = "t1"
    created_s: float = 1_700_000_000.0
    ended: ExecResult | SandforkError | None = None


def raw(
    body: Any = None, query: str = "", form: dict[str, str] | None = None, file: str | None = None, **params: str
) -> RawRequest:
    content = b"" if body is None else json.dumps(body).encode()
    upload = None if file is None else FormFile("file", file, 3)
    return RawRequest(content, params, query.encode(), form=form, file=upload, mint_id=lambda: "fresh")


def asked(body: dict[str, Any], bounds: Bounds = BOUNDS) -> ExecRequest:
    return programs.parse_exec(raw(body), bounds).requests[0]


def told(reply: Reply) -> Any:
    return json.loads(reply.body)


def replied(result: ExecResult) -> Any:
    return told(programs.render_exec(programs.parse_exec(raw({"command": ""}), BOUNDS), (result,), ""))


def test_a_command_alone_is_python_in_a_new_session_within_a_minute() -> None:
    request = asked({"command": "print(1)"})
    assert request.program == Snippet("python", "print(1)")
    assert request.limits.wall_s == 57.0
    assert request.session is not None
    assert (request.session.space, request.session.name, request.session.fresh) == ("instavm", "fresh", False)
    assert request.session.make == SessionSpec(language="python", limits=DISK, lifetime_s=300.0, idle_s=300.0)
    assert request.rich


def test_every_field_finds_its_place() -> None:
    body = {
        "code": "ls",
        "session_id": ID,
        "language": "bash",
        "timeout": 4,
        "vault_ids": [],
        "api_key": "k",
        "more": 1,
    }
    request = asked(body)
    assert request.program == Snippet("bash", "ls")
    assert request.limits.wall_s == 3.0
    assert request.session is not None
    assert request.session.name == ID
    assert request.session.make is not None
    assert request.session.make.language == "bash"
    assert not request.rich


@pytest.mark.parametrize(
    ("body", "code"),
    [
        ({"command": "a", "code": "b"}, "a"),
        ({"command": None, "code": "b"}, "b"),
        ({"command": "", "code": "b"}, "b"),
        ({"command": ""}, ""),
        ({"code": ""}, ""),
    ],
)
def test_the_command_wins_over_the_code(body: dict[str, Any], code: str) -> None:
    assert asked(body).program == Snippet("python", code)


def test_no_language_and_no_session_are_the_defaults() -> None:
    request = asked({"command": "x", "language": None, "session_id": None, "vault_ids": None})
    assert request.program == Snippet("python", "x")
    assert request.session is not None
    assert request.session.name == "fresh"


@pytest.mark.parametrize(("timeout", "wall_s"), [(1, 0.75), (8, 6.0), (60, 57.0), (300, 297.0), (600, 300.0)])
def test_a_program_is_stopped_before_its_client_gives_up_and_at_the_servers_maximum(
    timeout: int, wall_s: float
) -> None:
    assert asked({"command": "x", "timeout": timeout}).limits.wall_s == wall_s


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "command"),
        ({"command": None}, "command"),
        ({"command": 1}, "command"),
        ({"command": "x", "timeout": 0}, "timeout"),
        ({"command": "x", "timeout": 601}, "timeout"),
        ({"command": "x", "timeout": None}, "timeout"),
        ({"command": "x", "timeout": 1.5}, "timeout"),
        ({"command": "x", "session_id": 5}, "session_id"),
        ({"command": "x", "language": []}, "language"),
        ({"command": "x", "vault_ids": [1]}, "vault_ids[0]"),
    ],
)
def test_a_wrong_field_is_named(body: dict[str, Any], field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        asked(body)
    assert refused.value.field == field
    with pytest.raises(InvalidRequest):
        programs.parse_start(raw(body), BOUNDS)


def test_code_above_the_maximum_is_a_bad_request_and_code_at_it_is_not() -> None:
    assert asked({"command": "x" * 100})
    with pytest.raises(CallerError, match="code: is longer than 100 bytes") as refused:
        asked({"code": "é" * 51})
    assert render_error(refused.value, "").status == 400


@pytest.mark.parametrize("name", ["../x", "a b", "a/b", "-a", "x" * 129, "\0"])
def test_an_id_that_no_session_can_have_is_a_bad_request(name: str) -> None:
    for parse, body in ((programs.parse_exec, {"command": "x"}), (sessions.parse_kill, {})):
        with pytest.raises(CallerError) as refused:
            parse(raw({"session_id": name, **body}), BOUNDS)
        reply = render_error(refused.value, "")
        assert (reply.status, told(reply)) == (400, {"detail": "Invalid session ID"})


def test_vaults_are_refused_and_no_vaults_are_not() -> None:
    assert asked({"command": "x", "vault_ids": []})
    with pytest.raises(NotSupported, match="vault_ids"):
        asked({"command": "x", "vault_ids": ["v1"]})


def test_a_result_has_every_field() -> None:
    assert replied(ended()) == {
        "stdout": "2\n",
        "stderr": "",
        "exit_code": 0,
        "execution_time": 0.0072,
        "cpu_time": 0.003,
        "session_id": "fresh",
        "state_lost": False,
    }


@pytest.mark.parametrize(
    ("written", "shown", "stdout"),
    [
        (b"", [], ""),
        (b"a\n", [Display("result", {"text/plain": "5"})], "a\n5\n"),
        (b"a", [Display("result", {"text/plain": "5"})], "a\n5\n"),
        (b"", [Display("display", {"text/plain": "<Figure>", "image/png": "AA=="})], "<Figure>\n"),
        (b"a", [Display("display", {"image/png": "AA=="})], "a"),
    ],
)
def test_the_texts_of_what_was_shown_end_the_output(written: bytes, shown: list[Display], stdout: str) -> None:
    assert replied(ended(stdout=written, displays=tuple(shown)))["stdout"] == stdout


@pytest.mark.parametrize(
    ("outcome", "signal", "exit_code", "line"),
    [
        (Outcome.TIMED_OUT, 9, 124, "Execution timed out after 30s"),
        (Outcome.CPU_LIMIT, 24, 152, "CPU time limit of 30 s exceeded"),
        (Outcome.OUT_OF_MEMORY, 9, 137, "Memory limit of 512 MB exceeded"),
        (Outcome.PIDS_LIMIT, 9, 137, "Limit of 64 processes exceeded"),
        (Outcome.OUTPUT_LIMIT, 9, 137, "Output limit of 1048576 bytes exceeded"),
        (Outcome.DISK_LIMIT, 9, 137, "Disk limit of 67108864 bytes exceeded"),
        (Outcome.POLICY_VIOLATION, 31, 159, "Stopped by the sandbox's policy"),
    ],
)
def test_a_limit_says_so_on_a_last_line_and_keeps_the_output(
    outcome: Outcome, signal: int, exit_code: int, line: str
) -> None:
    reply = replied(ended(outcome=outcome, exit_code=None, signal=signal, stdout=b"so far", stderr=b"err"))
    assert (reply["stdout"], reply["stderr"], reply["exit_code"]) == ("so far", f"err\n{line}", exit_code)


def test_a_program_that_fails_or_is_killed_has_its_own_stderr_and_the_true_exit_code() -> None:
    failed = replied(ended(exit_code=3, stderr=b"boom\n"))
    assert (failed["stderr"], failed["exit_code"]) == ("boom\n", 3)
    killed = replied(ended(outcome=Outcome.SIGNALLED, exit_code=None, signal=11))
    assert (killed["stderr"], killed["exit_code"]) == ("", 139)


def test_the_loss_of_the_state_is_told() -> None:
    reply = replied(ended(outcome=Outcome.OUT_OF_MEMORY, exit_code=None, signal=9, state_lost=True))
    assert reply["state_lost"]
    assert reply["stderr"].splitlines() == ["Memory limit of 512 MB exceeded", programs.STATE_LOST]
    crashed = replied(ended(outcome=Outcome.SIGNALLED, exit_code=None, signal=11, state_lost=True))
    assert crashed["stderr"] == programs.STATE_LOST


def test_a_program_that_ends_its_interpreter_itself_has_only_its_own_words_on_stderr() -> None:
    reply = replied(ended(exit_code=3, stderr=b"mine", state_lost=True))
    assert (reply["stderr"], reply["exit_code"], reply["state_lost"]) == ("mine", 3, True)


def test_a_program_in_the_background_has_all_of_its_time() -> None:
    action = programs.parse_start(raw({"command": "x", "session_id": ID, "timeout": 20}), BOUNDS)
    assert action.request.limits.wall_s == 20.0
    assert told(programs.render_started(action, Task(), "")) == {
        "task_id": "t1",
        "session_id": ID,
        "status": "running",
        "created_at": "2023-11-14T22:13:20Z",
    }


def test_a_task_is_told_while_it_runs_and_when_it_is_over() -> None:
    action = programs.parse_read(raw(task_id="t1"), BOUNDS)
    assert action == ReadTask("t1")
    running = told(programs.render_task(action, Task(), ""))
    assert (running["is_complete"], running["status"], running["exit_code"]) == (False, "running", None)
    over = told(programs.render_task(action, Task(ended=ended(stderr=b"e")), ""))
    assert over == {
        "task_id": "t1",
        "status": "completed",
        "is_complete": True,
        "created_at": "2023-11-14T22:13:20Z",
        "serialized_stdout": "2\n",
        "serialized_stderr": "e",
        "exit_code": 0,
        "execution_time": 0.0072,
        "cpu_time": 0.003,
        "state_lost": False,
        "error": None,
    }


def test_why_a_task_could_not_be_run_stands_where_clients_look() -> None:
    action = ReadTask("t1")
    failed = told(programs.render_task(action, Task(ended=UnknownLanguage("cobol")), ""))
    assert (failed["is_complete"], failed["status"], failed["exit_code"]) == (True, "failed", None)
    assert failed["serialized_stderr"] == failed["error"] == "unknown language: cobol"
    hidden = told(programs.render_task(action, Task(ended=ForkFailed("secret path", step="clone3")), ""))
    assert "secret" not in hidden["serialized_stderr"]


def test_a_session_is_made_as_asked() -> None:
    body = {
        "api_key": "k",
        "vm_lifetime_seconds": 20,
        "memory_mb": 128,
        "vcpu_count": 2,
        "metadata": {"team": "a", "n": [1, None]},
        "env": {"A": "x", "N": 1, "F": 1.5, "B": True},
    }
    assert sessions.parse_create(raw(body), BOUNDS) == CreateSession(
        SessionSpec(
            limits=LimitsOverride(memory_bytes=128 << 20, disk_bytes=256 << 20, cpus=2),
            env=(("A", "x"), ("N", "1"), ("F", "1.5"), ("B", "true")),
            lifetime_s=20.0,
            idle_s=20.0,
            metadata={"team": '"a"', "n": "[1,null]"},
        )
    )


def test_more_processors_than_the_ceiling_are_refused() -> None:
    bounds = Bounds(ceilings=Limits(cpus=1.5))
    assert sessions.parse_create(raw({"vcpu_count": 1}), bounds).spec.limits.cpus == 1
    with pytest.raises(Forbidden, match=r"vcpu_count: 2 is above the ceiling of 1\.5"):
        sessions.parse_create(raw({"vcpu_count": 2}), bounds)


def test_a_session_has_room_for_files_but_not_more_than_its_caller_may_have() -> None:
    bounds = Bounds(ceilings=Limits(disk_bytes=1 << 20))
    assert sessions.parse_create(raw({}), bounds).spec.limits == LimitsOverride(disk_bytes=1 << 20)
    for wanted in (1 << 20, 1 << 30):
        bounds = Bounds(session_disk_bytes=wanted).lowered_to(Limits(disk_bytes=1 << 29))
        limits = LimitsOverride(disk_bytes=min(wanted, 1 << 29))
        assert sessions.parse_create(raw({}), bounds).spec.limits == limits
        assert sessions.default_spec("python", bounds).limits == limits


def test_a_session_lives_five_minutes_unless_it_is_told_otherwise() -> None:
    assert sessions.parse_create(raw({}), BOUNDS).spec == SessionSpec(limits=DISK, lifetime_s=300.0, idle_s=300.0)


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"vm_lifetime_seconds": 19}, "vm_lifetime_seconds"),
        ({"vm_lifetime_seconds": 86401}, "vm_lifetime_seconds"),
        ({"memory_mb": 127}, "memory_mb"),
        ({"memory_mb": 8193}, "memory_mb"),
        ({"vcpu_count": 3}, "vcpu_count"),
        ({"vcpu_count": "2"}, "vcpu_count"),
        ({"metadata": []}, "metadata"),
        ({"metadata": {"a": "x" * sessions.MAX_LABELS_BYTES}}, "metadata"),
        ({"env": {"A": None}}, "env[...]"),
        ({"env": "A=1"}, "env"),
    ],
)
def test_a_session_that_cannot_be_is_refused(body: dict[str, Any], field: str) -> None:
    for parse in (sessions.parse_create, sessions.parse_create_machine):
        with pytest.raises(InvalidRequest) as refused:
            parse(raw(body), BOUNDS)
        assert refused.value.field == field


def test_memory_above_the_ceiling_is_forbidden_and_memory_at_it_is_not() -> None:
    bounds = Bounds(ceilings=Limits(memory_bytes=256 << 20))
    assert sessions.parse_create(raw({"memory_mb": 256}), bounds)
    with pytest.raises(Forbidden, match="memory_mb: 512 is above the ceiling of 256"):
        sessions.parse_create(raw({"memory_mb": 512}), bounds)


def test_a_machine_is_a_session_and_takes_nothing_that_only_machines_have() -> None:
    plain = {"vm_lifetime_seconds": 60, "auto_suspend": False, "volumes": [], "snapshot_id": None}
    assert sessions.parse_create_machine(raw(plain), BOUNDS).spec.lifetime_s == 60.0
    for name, value in {"snapshot_id": "s", "volumes": [{}], "auto_suspend": True, "session_id": "s"}.items():
        with pytest.raises(NotSupported, match=name):
            sessions.parse_create_machine(raw({name: value}), BOUNDS)


def test_a_session_is_told_by_both_its_names() -> None:
    for action in (sessions.parse_read(raw(session_id=ID), BOUNDS), sessions.parse_read(raw(vm_id=ID), BOUNDS)):
        assert action == ReadSession(ID)
    assert told(sessions.render_session(ReadSession(ID), STATE, "")) == {
        "session_id": ID,
        "vm_id": ID,
        "status": "active",
        "vm_status": "active",
        "created_at": "2023-11-14T22:13:20Z",
        "expires_at": "2023-11-14T22:18:20Z",
        "vm_lifetime_seconds": 300.0,
        "memory_mb": 256,
        "metadata": {"team": "a", "number": 7},
    }


def test_the_status_tells_how_long_a_session_is_there_and_will_be() -> None:
    status = told(sessions.render_status(ReadSession(ID), STATE, ""))
    assert (status["vm_status"], status["vm_alive"], status["exists"], status["vm_assigned"]) == (
        "active",
        True,
        True,
        True,
    )
    assert (status["uptime_seconds"], status["expires_in_seconds"]) == (100.0, 200.0)


def test_the_usage_is_the_kernels_count() -> None:
    assert told(sessions.render_usage(ReadSession(ID), STATE, "")) == {
        "session_id": ID,
        "vm_id": ID,
        "executions": 3,
        "cpu_time": 0.75,
        "memory_peak_mb": 3.0,
        "memory_current_mb": 1.0,
        "memory_mb": 256,
        "uptime_seconds": 100.0,
    }


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("", 2),
        ("limit=1", 1),
        ("metadata=%7B%22team%22%3A%22a%22%7D", 1),
        ("metadata=%7B%22team%22%3A%22a%22%2C%22number%22%3A7%7D", 1),
        ("metadata=%7B%22number%22%3A%227%22%7D", 0),
        ("metadata=%7B%22none%22%3Anull%7D", 0),
        ("metadata=%7B%7D&limit=1000", 2),
    ],
)
def test_sessions_are_found_by_their_labels(query: str, found: int) -> None:
    other = SessionState("b", "python", Limits(), 0.0, 0.0, 0.0, True, 0, Usage(), {})
    listed = told(sessions.render_list(sessions.parse_list(raw(query=query), BOUNDS), (STATE, other), ""))
    assert [each["session_id"] for each in listed] == [ID, "b"][:found]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=0", "query.limit"),
        ("limit=1001", "query.limit"),
        ("limit=x", "query.limit"),
        ("limit=", "query.limit"),
        ("metadata=x", "query.metadata"),
        ("metadata=[]", "query.metadata"),
        ("metadata=%ff", "query.metadata"),
    ],
)
def test_a_list_that_cannot_be_is_refused_with_the_place_in_the_query(query: str, field: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        sessions.parse_list(raw(query=query), BOUNDS)
    assert refused.value.field == field
    assert told(render_error(refused.value, ""))["detail"][0]["loc"] == field.split(".")


def test_a_session_is_killed_by_both_its_names() -> None:
    for action in (
        sessions.parse_kill(raw({"session_id": ID}), BOUNDS),
        sessions.parse_delete(raw(vm_id=ID), BOUNDS),
    ):
        assert action == DeleteSession(ID)
        assert told(sessions.render_killed(action, None, "")) == {"session_id": ID, "vm_id": ID, "status": "killed"}


def test_a_policy_that_allows_nothing_can_be_set_and_is_what_is_told() -> None:
    nothing = {
        "allow_public_repos": False,
        "allow_http": False,
        "allow_https": False,
        "allowed_domains": [],
        "allowed_cidrs": [],
    }
    action = sessions.parse_set_egress(raw(nothing, session_id=ID), BOUNDS)
    assert action == ReadSession(ID)
    policy = told(sessions.render_egress(action, STATE, ""))
    assert {**policy, **nothing} == policy
    assert not policy["allow_package_managers"]


@pytest.mark.parametrize(
    "allowed",
    [
        {"allow_public_repos": True},
        {"allow_package_managers": True},
        {"allow_http": True},
        {"allow_https": True},
        {"allowed_domains": ["example.com"]},
        {"allowed_cidrs": ["10.0.0.0/8"]},
    ],
)
def test_a_policy_that_allows_anything_is_refused(allowed: dict[str, Any]) -> None:
    with pytest.raises(NotSupported) as refused:
        sessions.parse_set_egress(raw(allowed, vm_id=ID), BOUNDS)
    assert render_error(refused.value, "").status == 501


def test_a_file_goes_up_by_its_form_and_comes_down_as_base64() -> None:
    form = {"session_id": ID, "remote_path": "/tmp/a", "recursive": "false"}
    up = files.parse_upload(raw(form=form, file="/home/me/b"), BOUNDS)
    assert up == WriteFile(ID, "/tmp/a")
    assert told(files.render_uploaded(up, 3, "")) == {
        "session_id": ID,
        "remote_path": "/tmp/a",
        "size": 3,
        "status": "success",
    }
    down = files.parse_download(raw(form={"session_id": ID, "filename": "a"}), BOUNDS)
    assert down == ReadFile(ID, "a")
    assert files.render_download(down, 2, "").around == (b'{"filename":"a","content":"', b'","size":2}')


@pytest.mark.parametrize(("name", "path"), [("b.txt", "d/b.txt"), ("/home/me/b.txt", "d/b.txt"), ("", "d/")])
def test_a_file_that_goes_into_a_directory_keeps_its_name(name: str, path: str) -> None:
    form = {"session_id": ID, "remote_path": "d/"}
    assert files.parse_upload(raw(form=form, file=name), BOUNDS) == WriteFile(ID, path)


def test_an_empty_file_has_content_that_is_no_empty_text_and_decodes_to_nothing() -> None:
    around = files.render_download(ReadFile(ID, "a"), 0, "").around
    assert around is not None
    content = json.loads(b"".join(around))["content"]
    assert content
    assert base64.b64decode(content) == b""


@pytest.mark.parametrize("missing", ["session_id", "remote_path", "file"])
def test_a_form_without_a_field_is_refused_by_its_name(missing: str) -> None:
    form = {"session_id": ID, "remote_path": "a"}
    with pytest.raises(InvalidRequest) as refused:
        files.parse_upload(raw(form={**form, missing: ""}, file=None if missing == "file" else "b"), BOUNDS)
    assert told(render_error(refused.value, "")) == {
        "detail": [{"loc": ["body", missing], "msg": "Field required", "type": "missing"}]
    }


@pytest.mark.parametrize(
    ("body", "argv"),
    [
        ({}, ("/bin/bash", "-il")),
        ({"shell": "/bin/sh"}, ("/bin/sh",)),
        ({"command": "a && b"}, ("/bin/bash", "-lc", "a && b")),
        ({"command": "a", "shell": "/bin/sh"}, ("/bin/bash", "-lc", "a")),
    ],
)
def test_a_terminal_runs_a_line_or_a_shell(body: dict[str, Any], argv: tuple[str, ...]) -> None:
    action = terminals.parse_open(raw({"cols": 100, "rows": 30, **body}, session_id=ID), BOUNDS)
    assert action == OpenTerminal(ID, TerminalSpec(argv, 100, 30, terminals.ENV), None)


def test_a_terminal_can_be_named_but_not_anyhow() -> None:
    assert terminals.parse_open(raw({"id": "p-1"}, vm_id=ID), BOUNDS).name == "p-1"
    with pytest.raises(InvalidRequest, match="id: "):
        terminals.parse_open(raw({"id": "../p"}, vm_id=ID), BOUNDS)
    for size in ({"cols": 0}, {"rows": 1001}, {"cols": "80"}):
        with pytest.raises(InvalidRequest):
            terminals.parse_open(raw(size, vm_id=ID), BOUNDS)


def test_every_path_of_a_terminal_names_it() -> None:
    place = raw(session_id=ID, pty_id="p1")
    assert terminals.parse_read(place, BOUNDS) == ReadTerminal(ID, "p1")
    assert terminals.parse_close(place, BOUNDS) == CloseTerminal(ID, "p1")
    assert terminals.parse_list(raw(session_id=ID), BOUNDS) == ListTerminals(ID)
    assert terminals.select(raw(vm_id=ID, pty_id="p1")) == (ID, "p1")
    sized = raw({"cols": 100, "rows": 30}, session_id=ID, pty_id="p1")
    assert terminals.parse_resize(sized, BOUNDS) == ResizeTerminal(ID, "p1", 100, 30)


def test_a_terminal_is_told_under_its_own_id() -> None:
    one = told(terminals.render_terminal(ReadTerminal(ID, "p1"), TERMINAL, ""))
    assert one == {
        "session_id": "p1",
        "vm_id": ID,
        "command": "/bin/bash -lc 'ls -l'",
        "cols": 80,
        "rows": 24,
        "alive": True,
        "exit_code": None,
        "created_at": "2023-11-14T22:13:20Z",
    }
    assert told(terminals.render_list(ListTerminals(ID), (TERMINAL,), "")) == {"sessions": [one]}
    closed = told(terminals.render_closed(CloseTerminal(ID, "p1"), None, ""))
    assert closed == {"session_id": "p1", "status": "closed"}


@pytest.mark.parametrize(
    ("message", "meant"),
    [
        (b"ls\n", Input(b"ls\n")),
        (b"", Nothing()),
        ('{"type": "resize", "cols": 100, "rows": 30}', Resize(100, 30)),
        ('{"type": "resize", "cols": 0, "rows": 30}', Nothing()),
        ('{"type": "ping"}', Nothing()),
        ("ls\n", Nothing()),
        ("", Nothing()),
        ("[" * 5000, Nothing()),
    ],
)
def test_binary_messages_are_typed_and_text_is_control(message: str | bytes, meant: Any) -> None:
    assert terminals.receive(message) == meant


def test_the_end_of_a_terminal_is_a_message() -> None:
    assert json.loads(terminals.tell_exit(7)) == {"type": "exit", "exit_code": 7}
    assert json.loads(terminals.tell_exit(None)) == {"type": "exit", "exit_code": None}


@pytest.mark.parametrize(
    ("request_", "key"),
    [
        (raw({"api_key": "k1"}), b"k1"),
        (raw({"api_key": None}), None),
        (raw({"api_key": 5}), None),
        (raw({"api_key": ""}), None),
        (raw([]), None),
        (RawRequest(b"no JSON"), None),
        (RawRequest(b"[" * 100_000), None),
        (raw(query="api_key=k%201", pty_id="p1"), b"k 1"),
        (raw(query="other=1", pty_id="p1"), None),
        (raw(query="api_key=k1"), None),
        (raw({}, query="api_key=k1", pty_id="p1"), None),
        (raw(), None),
    ],
)
def test_a_key_is_found_in_a_body_and_in_the_address_of_a_terminal_only(
    request_: RawRequest, key: bytes | None
) -> None:
    assert find_key(request_) == key


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (Unauthenticated(missing=True), 401, "Not authenticated"),
        (Unauthenticated(missing=False), 401, "Invalid API key"),
        (Forbidden("memory_mb: 9 is above the ceiling of 8"), 403, "memory_mb: 9 is above the ceiling of 8"),
        (SessionNotFound("no session x"), 404, "no session x"),
        (FileNotInSandbox("no file a"), 404, "no file a"),
        (MethodNotAllowed("PUT", ("GET",)), 405, "method PUT is not allowed here, only GET"),
        (PayloadTooLarge(9), 413, "request body is larger than 9 bytes"),
        (UnsupportedMedia("JSON only"), 415, "JSON only"),
        (RateLimited("Rate limit exceeded (1 req/s)", retry_after_s=2.5), 429, "Rate limit exceeded (1 req/s)"),
        (SandforkError("secret"), 500, "internal error"),
        (NotSupported("no"), 501, "no"),
        (Overloaded("full", retry_after_s=1.0), 503, "full"),
    ],
)
def test_an_error_is_a_sentence(error: SandforkError, status: int, detail: str) -> None:
    reply = render_error(error, "")
    assert (reply.status, told(reply)) == (status, {"detail": detail})
    assert ((b"retry-after", b"3") in reply.headers) == (status == 429)


@pytest.mark.parametrize(
    ("error", "problem"),
    [
        (
            InvalidRequest("timeout", "expected int >= 1"),
            {"loc": ["body", "timeout"], "msg": "expected int >= 1", "type": "value_error"},
        ),
        (
            InvalidRequest("a.b[2].c", "is required"),
            {"loc": ["body", "a", "b", 2, "c"], "msg": "Field required", "type": "missing"},
        ),
        (
            InvalidRequest("", "the body is not valid JSON"),
            {"loc": ["body"], "msg": "the body is not valid JSON", "type": "value_error"},
        ),
        (
            UnknownLanguage("cobol"),
            {"loc": ["body", "language"], "msg": "unknown language: cobol", "type": "value_error"},
        ),
    ],
)
def test_a_wrong_field_is_told_by_its_place(error: SandforkError, problem: dict[str, Any]) -> None:
    reply = render_error(error, "")
    assert (reply.status, told(reply)) == (422, {"detail": [problem]})


def test_no_two_routes_of_the_dialect_are_one() -> None:
    places = [(route.method, route.path) for route in DIALECT.routes]
    assert len(places) == len(set(places))
