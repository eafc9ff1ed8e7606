"""Any body gives a value or a CallerError, and any result gives an answer: for every dialect, and nothing else."""

from __future__ import annotations

import contextlib
import json
import re
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from sandfork.dialects import load_dialects
from sandfork.dialects.actions import Action, Begin, Told
from sandfork.dialects.base import (
    ActionRoute,
    Ask,
    Bounds,
    Dialect,
    ExecRoute,
    FormFile,
    HealthRoute,
    LanguageRoute,
    LanguageState,
    QueryRoute,
    RawRequest,
    Reply,
    ServiceHealth,
    SocketRoute,
    TerminalRoute,
)
from sandfork.errors import CallerError, ForkFailed, GuestLost, InvalidRequest, Overloaded, SandforkError
from sandfork.model import (
    ExecRequest,
    ExecResult,
    Limits,
    Outcome,
    OutputFile,
    TemplateHealth,
    Timings,
    Usage,
)

ROUTES = [(d, r) for d in load_dialects() for r in d.routes if isinstance(r, ExecRoute)]
every_route = pytest.mark.parametrize(
    ("dialect", "route"), ROUTES, ids=lambda each: getattr(each, "path", "") or each.name
)
bounded = settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow], deadline=None)

NESTED = {"base64", "wall_s", "pids", "command", "args", "env", "files", "resource_limits", "memory_limit"}
NESTED |= {
    "code",
    "cmd",
    "runtime",
    "timeoutMs",
    "outputPaths",
    "workdir",
    "memoryLimit",
    "cpuLimit",
    "secrets",
    "type",
}
NAMES = sorted({name for _, r in ROUTES for name in r.body_type.__struct_encode_fields__} | NESTED)
strings = st.text(max_size=20) | st.sampled_from(["", "python", "none", "process", "\0", "../x", "a/b", "x" * 300])
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(1 << 80), 1 << 80)
    | st.floats(allow_nan=True, allow_infinity=True)
    | strings
)
values = st.recursive(
    leaves,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(NAMES) | strings, inner, max_size=4),
    max_leaves=12,
)
bodies = st.dictionaries(st.sampled_from(NAMES), values, max_size=6)
raw_bodies = st.binary(max_size=200) | (bodies | values).map(lambda value: json.dumps(value).encode())
outputs = st.binary(max_size=50)
seconds = st.floats(0, 1e6)
counts = st.integers(0, 1 << 62)
paths = st.binary(min_size=1, max_size=20).map(lambda name: name.decode("utf-8", "surrogateescape"))


def parsed(route: ExecRoute, body: bytes) -> Ask | None:
    """Return what a route makes of a body, None when it is the caller's fault."""
    params = dict.fromkeys(re.findall(r"{(\w+)", route.path), "s")
    try:
        return route.parse(RawRequest(body, params), Bounds(max_wall_s=60.0, max_code_bytes=100, max_batch=3))
    except CallerError as refused:
        refused.message.encode()
        return None


def well_formed(ask: Ask) -> None:
    for request in ask.requests:
        assert isinstance(request, ExecRequest)
        assert request.limits.wall_s is not None
        assert 0 < request.limits.wall_s <= 60.0
        assert isinstance(request.stdin, bytes)
        assert all(isinstance(file.content, bytes) for file in request.files)
        repr(request).encode()


@every_route
@bounded
@given(body=raw_bodies)
def test_any_body_is_understood_or_refused(dialect: Dialect, route: ExecRoute, body: bytes) -> None:
    ask = parsed(route, body)
    if ask is not None:
        well_formed(ask)


@every_route
@bounded
@given(changes=bodies, index=st.integers(0, 10))
def test_a_good_body_with_any_fields_changed_is_understood_or_refused(
    dialect: Dialect, route: ExecRoute, changes: dict[str, Any], index: int
) -> None:
    good = json.loads(route.examples[index % len(route.examples)].request)
    inner = [good[name] for name in ("request", "options") if name in good]
    for target in good.get("executions") or good.get("tasks") or inner or [good]:
        target.update(changes)
    ask = parsed(route, json.dumps(good).encode())
    if ask is not None:
        well_formed(ask)


@every_route
@bounded
@given(st.data())
def test_a_body_cut_or_altered_anywhere_is_understood_or_refused(
    dialect: Dialect, route: ExecRoute, data: st.DataObject
) -> None:
    good = bytearray(route.examples[0].request)
    if data.draw(st.booleans()):
        del good[data.draw(st.integers(0, len(good))) :]
    else:
        good[data.draw(st.integers(0, len(good) - 1))] = data.draw(st.integers(0, 255))
    parsed(route, bytes(good))


results = st.builds(
    ExecResult,
    exec_id=st.just("id"),
    outcome=st.sampled_from(Outcome),
    exit_code=st.none() | st.integers(0, 255),
    signal=st.none() | st.integers(1, 64),
    stdout=outputs,
    stderr=outputs,
    truncated=st.booleans(),
    usage=st.builds(Usage, seconds, seconds, seconds, counts, counts, counts, counts, counts),
    limits=st.builds(Limits, wall_s=seconds),
    timings=st.builds(Timings, seconds, seconds, seconds, seconds),
    isolation=st.sampled_from(["process", "reduced"]),
    files=st.lists(st.builds(OutputFile, paths, outputs), max_size=3).map(tuple),
    files_skipped=st.lists(paths, max_size=3).map(tuple),
)
failures = st.sampled_from(
    [Overloaded("full"), ForkFailed("no", step="clone3"), GuestLost("gone"), SandforkError("internal error")]
)


@every_route
@bounded
@given(answer=results | failures)
def test_any_answer_is_rendered_as_json(dialect: Dialect, route: ExecRoute, answer: ExecResult | SandforkError) -> None:
    assume(isinstance(answer, (ExecResult, *route.as_results)))
    ask = parsed(route, route.examples[0].request)
    assert ask is not None
    reply = route.render(ask, (answer,) * len(ask.requests), "req-1")
    document = msgspec.json.decode(reply.body)
    first = document.get("results", [document])[0]
    if isinstance(answer, ExecResult):
        assert isinstance(first.get("exit_code", first.get("exitCode")), int)
        assert (first["stdout"] or "") == answer.stdout.decode("utf-8", "replace")
        assert (first["stderr"] or "").startswith(answer.stderr.decode("utf-8", "replace"))


@pytest.mark.parametrize("dialect", load_dialects(), ids=lambda dialect: dialect.name)
@bounded
@given(field=strings, reason=strings, request_id=strings)
def test_any_refusal_is_rendered_as_json(dialect: Dialect, field: str, reason: str, request_id: str) -> None:
    reply = dialect.render_error(InvalidRequest(field, reason), request_id)
    assert reply.status in (400, 422)
    assert msgspec.json.decode(reply.body)


sockets = pytest.mark.parametrize(
    "route",
    [r for d in load_dialects() for r in d.routes if isinstance(r, SocketRoute)],
    ids=lambda route: str(route.path),
)
messages = (
    st.text()
    | raw_bodies
    | st.fixed_dictionaries(
        {"type": st.sampled_from(["execute", "start", "stdin", "signal", "x"])},
        optional={"request": bodies, "data": leaves, "signal": st.sampled_from(["SIGINT", "", 2]), "code": strings},
    ).map(json.dumps)
)


@sockets
@bounded
@given(message=messages)
def test_any_message_of_a_websocket_is_understood_or_refused(route: SocketRoute, message: str | bytes) -> None:
    try:
        told = route.receive(message, Bounds(max_wall_s=60.0, max_code_bytes=100))
    except CallerError as refused:
        told, said = None, route.refuse(refused, "req-1")
        assert isinstance(json.loads(said), dict)
    if isinstance(told, Begin):
        well_formed(told.ask)


templates = st.builds(TemplateHealth, strings, st.booleans(), counts, counts, counts, strings)


@pytest.mark.parametrize("dialect", load_dialects(), ids=lambda dialect: dialect.name)
@bounded
@given(health=st.builds(ServiceHealth, st.lists(templates, max_size=3), strings, strings))
def test_any_state_has_a_health_document(dialect: Dialect, health: ServiceHealth) -> None:
    for route in dialect.routes:
        if isinstance(route, HealthRoute):
            reply = route.render(health)
            assert reply.status == (200 if health.ready else 503)
            assert msgspec.json.decode(reply.body)


languages = st.lists(
    st.builds(
        LanguageState,
        strings,
        st.lists(strings, max_size=2).map(tuple),
        strings,
        st.just(("x",)),
        strings,
        st.booleans(),
    ),
    max_size=3,
)
#: One route for each way to answer: many say the same.
QUESTIONS = {r.render: (d, r) for d in load_dialects() for r in d.routes if isinstance(r, QueryRoute | LanguageRoute)}
queries = pytest.mark.parametrize(
    ("dialect", "route"),
    list(QUESTIONS.values()),
    ids=lambda each: f"{each.method} {each.path}" if isinstance(each, QueryRoute | LanguageRoute) else each.name,
)


@queries
@bounded
@given(body=raw_bodies, name=strings, known=languages)
def test_any_question_is_answered_or_refused(
    dialect: Dialect, route: QueryRoute | LanguageRoute, body: bytes, name: str, known: list[LanguageState]
) -> None:
    raw = RawRequest(body, {"lang": name})
    try:
        if isinstance(route, LanguageRoute):
            found = route.select(raw, known)
            assert found in known
            reply = route.render(found)
        else:
            reply = route.render(raw, known)
    except CallerError as refused:
        reply = dialect.render_error(refused, "")
        assert 400 <= reply.status <= 501
    assert isinstance(reply, Reply)
    assert isinstance(msgspec.json.decode(reply.body), dict)


ACTIONS = [(d, r) for d in load_dialects() for r in d.routes if isinstance(r, ActionRoute)]
forms = st.none() | st.dictionaries(st.sampled_from(["session_id", "remote_path", "filename"]) | strings, strings)
form_files = st.none() | st.builds(FormFile, strings, strings, counts)


@pytest.mark.parametrize(("dialect", "route"), ACTIONS, ids=lambda each: getattr(each, "path", "") or each.name)
@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow], deadline=None)
@given(body=raw_bodies, query=st.binary(max_size=40), name=strings, form=forms, file=form_files)
def test_anything_asked_is_an_action_or_refused(
    dialect: Dialect,
    route: ActionRoute,
    body: bytes,
    query: bytes,
    name: str,
    form: dict[str, str] | None,
    file: FormFile | None,
) -> None:
    params = dict.fromkeys(re.findall(r"{(\w+)", route.path), name)
    raw = RawRequest(body, params, query, form=form, file=file, mint_id=lambda: "fresh")
    try:
        assert isinstance(route.parse(raw, Bounds(max_wall_s=60.0, max_code_bytes=100, max_batch=3)), Action)
    except CallerError as refused:
        reply = dialect.render_error(refused, "")
        assert 400 <= reply.status <= 501
        assert isinstance(msgspec.json.decode(reply.body), dict)


TERMINALS = [r for d in load_dialects() for r in d.routes if isinstance(r, TerminalRoute)]


@pytest.mark.parametrize("route", TERMINALS, ids=lambda route: route.path)
@bounded
@given(message=st.binary(max_size=40) | st.text(max_size=40) | (bodies | values).map(json.dumps))
def test_any_message_to_a_terminal_is_understood_or_refused(route: TerminalRoute, message: str | bytes) -> None:
    with contextlib.suppress(CallerError):
        assert isinstance(route.receive(message), Told)
