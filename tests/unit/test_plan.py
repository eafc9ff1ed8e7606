"""Planning: what a request, a caller and the policy give, and what is refused."""

from __future__ import annotations

import math
import uuid
from dataclasses import fields, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sandfork.engine.ids import mint_exec_id
from sandfork.engine.paths import normalise_path
from sandfork.engine.plan import Planner
from sandfork.engine.policy import MAXIMUM, MINIMUM, LimitPolicy
from sandfork.errors import CallerError, Forbidden, InvalidRequest, NotSupported, UnknownLanguage
from sandfork.languages.catalogue import Catalogue, Language
from sandfork.model import (
    Caller,
    Command,
    ExecPlan,
    ExecRequest,
    InputFile,
    Limits,
    LimitsOverride,
    SessionSpec,
    SessionUse,
    Snippet,
)

CATALOGUE = Catalogue.load()
CALLER = Caller("k1")
HELLO = ExecRequest(Snippet("python", "print(1)"))
NAMES = [item.name for item in fields(Limits)]
CEILINGS = replace(MAXIMUM, cpus=4.0)
BOUNDED = LimitPolicy(maximum=CEILINGS)
"""Ceilings of everything: of processors a server has none of its own."""


SHELL = Language("testshell", (), ".sh", "main.sh", ("/bin/sh", "{file}"), session_argv=("/bin/sh", "-i"))
"""A language whose interpreter is started for each program, and another way for a session."""
MUTE = replace(SHELL, name="mute", session_argv=())
LASTING, FRESH = SessionUse("native", "s"), SessionUse("native", "s", fresh=True)


def plan(
    request: ExecRequest = HELLO, caller: Caller = CALLER, policy: LimitPolicy | None = None, isolation: str = "process"
) -> ExecPlan:
    return Planner(CATALOGUE, policy or LimitPolicy(), isolation).plan("id", request, caller)


def refuse(error: type[CallerError], field: str, policy: LimitPolicy | None = None, **change: Any) -> str:
    with pytest.raises(error) as caught:
        plan(replace(HELLO, **change), policy=policy)
    if isinstance(caught.value, InvalidRequest):
        assert caught.value.field == field
    else:
        assert field in caught.value.message
    return caught.value.message


def test_a_snippet_becomes_a_file_in_the_work_directory_and_its_run() -> None:
    made = plan(replace(HELLO, args=("a", "b"), stdin=b"in", env=(("A", "1"),), collect=("out.txt",)))
    assert (made.exec_id, made.caller, made.language, made.template_key) == ("id", CALLER, "python", "python")
    assert made.step.argv == ("/sandbox/main.py", "a", "b")
    assert (made.step.file_name, made.step.code) == ("main.py", b"print(1)")
    assert (made.step.stdin, made.step.env, made.collect) == (b"in", (("A", "1"),), ("out.txt",))
    assert made.limits == Limits()


@pytest.mark.parametrize(
    ("language", "argv"),
    [("js", ("/usr/bin/node", "/sandbox/main.js")), ("bash", ("/bin/bash", "/sandbox/main.sh"))],
)
def test_only_a_forked_interpreter_is_not_in_its_own_argv(language: str, argv: tuple[str, ...]) -> None:
    assert plan(ExecRequest(Snippet(language, ""))).step.argv == argv


def test_a_command_keeps_its_argv_and_runs_in_a_ready_cell() -> None:
    made = plan(ExecRequest(Command(("ls", "-l")), args=("x",)))
    assert (made.step.argv, made.step.code, made.step.file_name) == (("ls", "-l", "x"), None, None)
    assert (made.template_key, made.language) == ("command", "command")


def test_an_unknown_language_is_refused_with_those_there_are() -> None:
    with pytest.raises(UnknownLanguage) as caught:
        plan(ExecRequest(Snippet("klingon", "")))
    assert (caught.value.name, caught.value.available) == ("klingon", CATALOGUE.names())


def plan_in_session(language: str, code: str = "", use: SessionUse = LASTING, **change: Any) -> ExecPlan:
    catalogue = Catalogue((*CATALOGUE.languages(), SHELL, MUTE))
    request = ExecRequest(Snippet(language, code), session=use, **change)
    return Planner(catalogue, LimitPolicy(), "process").plan("id", request, CALLER)


def test_an_interpreter_of_a_session_lasts_and_a_fresh_program_does_not() -> None:
    made = plan_in_session("python", args=("a",), stdin=b"in", limits=LimitsOverride(pids=7, wall_s=1))
    assert (made.session, made.step.lasting, made.named_limits) == (LASTING, True, {"pids", "wall_s"})
    assert (made.step.argv, made.step.stdin) == (("/sandbox/main.py", "a"), b"in")
    fresh = plan_in_session("python", use=FRESH, keep_stdin=True)
    assert (fresh.step.lasting, fresh.step.keep_stdin, fresh.named_limits) == (False, True, frozenset())
    command = plan(ExecRequest(Command(("ls",)), session=LASTING, keep_stdin=True))
    assert (command.step.lasting, command.step.keep_stdin) == (False, True)
    assert not plan(HELLO).step.lasting


def test_an_interpreter_of_a_session_is_started_as_its_language_says() -> None:
    assert plan_in_session("testshell").step.argv == ("/bin/sh", "-i")
    assert plan_in_session("testshell", use=FRESH).step.argv == ("/bin/sh", "/sandbox/main.sh")
    assert plan_in_session("node").step.argv == plan(ExecRequest(Snippet("node", ""))).step.argv


def test_a_language_without_an_interpreter_that_keeps_its_state_runs_plainly_in_a_session() -> None:
    plainly = plan_in_session("mute", "echo \0", keep_stdin=True)
    assert (plainly.step.lasting, plainly.step.argv) == (False, ("/bin/sh", "/sandbox/main.sh"))
    assert plainly.session == LASTING


def test_what_an_interpreter_of_a_session_cannot_do_is_refused() -> None:
    with pytest.raises(InvalidRequest) as caught:
        plan_in_session("python", keep_stdin=True)
    assert caught.value.field == "stdin"
    with pytest.raises(InvalidRequest) as caught:
        plan_in_session("testshell", "echo \0")
    assert caught.value.field == "code"
    plan_in_session("testshell", "echo \0", FRESH)
    with pytest.raises(NotSupported, match="namespaces"):
        plan(replace(HELLO, session=LASTING), isolation="reduced")


def test_rich_results_are_for_interpreters_that_are_forked() -> None:
    assert plan(replace(HELLO, rich=True)).step.rich
    assert not plan(replace(HELLO, rich=True, program=Snippet("node", ""))).step.rich


def test_a_session_is_made_for_a_language_by_any_of_its_names_or_for_commands() -> None:
    planner = Planner(CATALOGUE, LimitPolicy(), "process")
    assert planner.language_of("py") == ("python", "python")
    assert planner.language_of("bash") == ("bash", "command")
    assert planner.language_of(None) == ("command", "command")
    with pytest.raises(UnknownLanguage):
        planner.language_of("klingon")


def test_the_limits_of_a_session_have_the_defaults_and_ceilings_of_executions() -> None:
    planner = Planner(CATALOGUE, LimitPolicy(), "process")
    assert planner.session_limits(SessionSpec(limits=LimitsOverride(pids=7)), CALLER) == replace(Limits(), pids=7)
    with pytest.raises(Forbidden, match="pids"):
        planner.session_limits(SessionSpec(limits=LimitsOverride(pids=MAXIMUM.pids + 1)), CALLER)
    with pytest.raises(InvalidRequest):
        planner.check_env((("1", ""),))
    with pytest.raises(NotSupported, match="namespaces"):
        Planner(CATALOGUE, LimitPolicy(), "reduced").session_limits(SessionSpec(), CALLER)


@pytest.mark.parametrize(
    ("program", "argv"),
    [
        (Snippet("python", ""), ("/usr/bin/python3", "/sandbox/main.py", "x")),
        (Snippet("js", ""), ("/usr/bin/node", "/sandbox/main.js", "x")),
        (Snippet("bash", ""), ("/bin/bash", "/sandbox/main.sh", "x")),
        (Command(("ls", "-l")), ("ls", "-l", "x")),
    ],
)
def test_a_program_that_starts_elsewhere_is_started_cold_by_a_shell(
    program: Snippet | Command, argv: tuple[str, ...]
) -> None:
    made = plan(ExecRequest(program, args=("x",), work_dir="/sandbox/a//b"))
    assert made.template_key == "command"
    assert made.step.argv[0] == "/bin/sh"
    assert made.step.argv[3:] == ("/sandbox/a/b", *argv)
    assert (made.step.code is None) == isinstance(program, Command)
    assert made.language == plan(ExecRequest(program)).language


def test_a_program_starts_below_the_work_directory_or_not_at_all() -> None:
    for path in ("../x", "/tmp/x", "/etc", "a/", "\0"):
        refuse(InvalidRequest, "work_dir", work_dir=path)
    refuse(InvalidRequest, "work_dir", work_dir="a", session=SessionUse("native", "s"))
    assert plan(replace(HELLO, work_dir="a", session=SessionUse("isol8", "s", fresh=True))).step.lasting is False


def test_a_request_may_name_the_template() -> None:
    assert plan(replace(HELLO, template="python-numpy")).template_key == "python-numpy"
    assert "python, python-numpy" in refuse(InvalidRequest, "template", template="node")
    assert "command" in refuse(InvalidRequest, "template", program=Command(("ls",)), template="python")
    refuse(InvalidRequest, "template", program=Command(("ls",)), template="command@image")


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, -math.inf, "1", True, None.__class__])
def test_a_limit_that_is_no_positive_finite_number_is_refused(name: str, value: Any) -> None:
    refuse(InvalidRequest, f"limits.{name}", limits=LimitsOverride(**{name: value}))


@pytest.mark.parametrize("name", [name for name in NAMES if not name.endswith("_s") and name != "cpus"])
def test_counts_and_sizes_are_whole_numbers(name: str) -> None:
    refuse(InvalidRequest, f"limits.{name}", limits=LimitsOverride(**{name: 100.5}))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", NAMES)
def test_a_limit_may_be_anything_between_the_minimum_and_the_ceiling(name: str) -> None:
    for bound in (MINIMUM, CEILINGS):
        value = getattr(bound, name)
        made = plan(replace(HELLO, limits=LimitsOverride(**{name: value})), policy=BOUNDED)
        assert getattr(made.limits, name) == value


@pytest.mark.parametrize("name", [name for name in NAMES if name != "wall_s"])
def test_a_limit_above_the_ceiling_is_forbidden_by_name_and_whose_ceiling_it_is(name: str) -> None:
    above = LimitsOverride(**{name: getattr(CEILINGS, name) * 2})
    assert "server's ceiling" in refuse(Forbidden, f"limits.{name}", BOUNDED, limits=above)
    key_max = Limits(**{name: getattr(MINIMUM, name) * 2})
    caller = Caller("k", max_limits=key_max)
    with pytest.raises(Forbidden, match=rf"limits\.{name}.*key's ceiling"):
        plan(replace(HELLO, limits=LimitsOverride(**{name: getattr(MINIMUM, name) * 3})), caller)


def test_a_wall_time_above_the_ceiling_is_clamped_to_it() -> None:
    assert plan(replace(HELLO, limits=LimitsOverride(wall_s=10_000))).limits.wall_s == 300
    caller = Caller("k", max_limits=replace(MAXIMUM, wall_s=7.0))
    assert plan(replace(HELLO, limits=LimitsOverride(wall_s=10_000)), caller).limits.wall_s == 7


def test_defaults_above_the_keys_ceiling_are_lowered_to_it() -> None:
    caller = Caller("k", max_limits=replace(Limits(), memory_bytes=64 << 20, wall_s=3.0))
    assert plan(caller=caller).limits.memory_bytes == 64 << 20
    assert plan(caller=caller).limits.wall_s == 3


@pytest.mark.parametrize(
    ("asked", "cpu_s"),
    [
        (LimitsOverride(wall_s=120), 120),
        (LimitsOverride(wall_s=5), 30),
        (LimitsOverride(wall_s=120, cpu_s=2), 2),
        (LimitsOverride(wall_s=10_000), 300),
        (LimitsOverride(wall_s=40, cpus=0.5), 40),
        (LimitsOverride(wall_s=40, cpus=3), 120),
        (LimitsOverride(wall_s=40, cpus=100), 300),
        (LimitsOverride(wall_s=40, cpus=3, cpu_s=2), 2),
    ],
)
def test_cpu_time_not_named_is_at_least_the_wall_time(asked: LimitsOverride, cpu_s: float) -> None:
    assert plan(replace(HELLO, limits=asked)).limits.cpu_s == cpu_s


def test_processors_have_no_quota_unless_a_default_a_ceiling_or_the_request_says_so() -> None:
    def cpus(policy: LimitPolicy, caller: Caller = CALLER, **named: float) -> float:
        return plan(replace(HELLO, limits=LimitsOverride(**named)), caller, policy).limits.cpus  # type: ignore[arg-type]

    assert cpus(LimitPolicy()) == math.inf
    assert cpus(LimitPolicy(), cpus=0.5) == 0.5
    assert cpus(LimitPolicy(default=Limits(cpus=2.0))) == 2.0
    assert cpus(BOUNDED) == 4.0
    assert cpus(BOUNDED, Caller("k", max_limits=replace(MAXIMUM, cpus=1.0))) == 1.0


@pytest.mark.parametrize(
    ("asked", "cpu_s"),
    [
        (LimitsOverride(), 30),
        (LimitsOverride(wall_s=10, cpus=0.5), 5),
        (LimitsOverride(wall_s=10, cpus=8), 80),
        (LimitsOverride(wall_s=10, cpus=8, cpu_s=3), 3),
        (LimitsOverride(wall_s=0.002, cpus=0.01), 0.001),
    ],
)
def test_where_no_quota_can_be_had_processors_are_the_time_that_they_could_give(
    asked: LimitsOverride, cpu_s: float
) -> None:
    limits = plan(replace(HELLO, limits=asked), policy=LimitPolicy(rates_cpus=False)).limits
    assert (limits.cpu_s, limits.cpus) == (cpu_s, math.inf)


def test_features_that_are_not_there_are_refused_and_not_ignored() -> None:
    refuse(NotSupported, "packages", packages=("requests",))
    refuse(NotSupported, "network", network="filtered")
    refuse(Forbidden, "network", network="host")
    refuse(NotSupported, "isolation", isolation="microvm")
    refuse(InvalidRequest, "isolation", isolation="docker")


def test_a_request_gets_at_least_the_isolation_it_names_or_is_refused() -> None:
    assert plan(replace(HELLO, isolation="reduced")).isolation == "process"
    assert plan(replace(HELLO, isolation="process")).isolation == "process"
    with pytest.raises(NotSupported):
        plan(replace(HELLO, isolation="process"), isolation="reduced")


def test_sizes_and_counts_above_the_policy_are_refused() -> None:
    small = LimitPolicy(
        max_code_bytes=10,
        max_stdin_bytes=3,
        max_files=1,
        max_files_bytes=5,
        max_args=2,
        max_args_bytes=9,
        max_env=1,
        max_env_bytes=8,
        max_collect=1,
    )
    ok = ExecRequest(
        Snippet("python", "0123456789"),
        files=(InputFile("a", b"12345"),),
        stdin=b"123",
        args=("1234", "123"),
        env=(("ABC", "123"),),
        collect=("a",),
    )
    plan(ok, policy=small)
    refuse(InvalidRequest, "code", small, program=Snippet("python", "0123456789a"))
    refuse(InvalidRequest, "code", small, program=Snippet("python", "äöüäöü"))
    refuse(InvalidRequest, "stdin", small, program=ok.program, stdin=b"1234")
    refuse(InvalidRequest, "files", small, files=(InputFile("a", b""), InputFile("b", b"")))
    refuse(InvalidRequest, "files", small, files=(InputFile("a", b"123456"),))
    refuse(InvalidRequest, "args", small, args=("a", "b", "c"))
    refuse(InvalidRequest, "args", small, args=("1234", "1234"))
    refuse(InvalidRequest, "argv", small, program=Command(("1234", "1234")))
    refuse(InvalidRequest, "env", small, env=(("A", ""), ("B", "")))
    refuse(InvalidRequest, "env", small, env=(("ABC", "1234"),))
    refuse(InvalidRequest, "collect", small, program=ok.program, collect=("a", "b"))


def test_files_that_do_not_fit_on_the_sandboxs_disk_are_refused() -> None:
    tight = LimitsOverride(disk_bytes=1 << 20)
    plan(replace(HELLO, files=(InputFile("a", bytes((1 << 20) - 8)),), limits=tight))
    refuse(InvalidRequest, "files", files=(InputFile("a", bytes((1 << 20) - 7)),), limits=tight)


@pytest.mark.parametrize("name", ["", "1A", "A=B", "A B", "A\0", "Ä", "A\n", "-"])
def test_a_variable_has_a_name_a_shell_would_take(name: str) -> None:
    refuse(InvalidRequest, "env", env=((name, "x"),))


def test_words_and_values_hold_no_nul_and_are_text() -> None:
    for bad in ("a\0b", "\ud800"):
        refuse(InvalidRequest, "env", env=(("A", bad),))
        refuse(InvalidRequest, "args", args=(bad,))
        refuse(InvalidRequest, "argv", program=Command(("ls", bad)))
    refuse(InvalidRequest, "env", env=(("A", "1"), ("A", "2")))
    refuse(InvalidRequest, "code", program=Snippet("python", "\ud800"))
    refuse(InvalidRequest, "argv", program=Command(()))
    refuse(InvalidRequest, "argv", program=Command(("",)))


@pytest.mark.parametrize(
    ("path", "normal"),
    [
        ("a", "a"),
        ("./a//b/./c", "a/b/c"),
        ("/sandbox/a", "a"),
        ("//sandbox//a", "a"),
        ("/tmp/x", "/tmp/x"),
        ("a..b/...", "a..b/..."),
        ("sub/main.py", "sub/main.py"),
        ("*.txt", "*.txt"),
    ],
)
def test_a_path_is_brought_to_its_one_shape(path: str, normal: str) -> None:
    assert normalise_path("files", path) == normal
    assert normalise_path("files", normal) == normal


@pytest.mark.parametrize(
    "path",
    [
        "",
        ".",
        "/",
        "..",
        "../a",
        "a/../../b",
        "a/..",
        "/sandbox/../etc/passwd",
        "/etc/passwd",
        "/sandboxes/a",
        "/sandbox",
        "/sandbox/",
        "/tmp",
        "/tmp/.",
        "a/",
        "a/.",
        "a\0b",
        "\ud800",
        "x" * 256,
        "ä" * 128,
        "a/" * 2048 + "b",
    ],
)
def test_a_path_that_names_no_file_below_a_writable_directory_is_refused(path: str) -> None:
    refuse(InvalidRequest, "files", files=(InputFile(path, b""),))
    refuse(InvalidRequest, "collect", collect=(path,))


def test_two_files_at_one_place_are_refused() -> None:
    refuse(InvalidRequest, "files", files=(InputFile("a", b""), InputFile("./a", b"")))
    refuse(InvalidRequest, "files", files=(InputFile("a", b""), InputFile("a/b", b"")))
    refuse(InvalidRequest, "files", files=(InputFile("/sandbox/main.py", b""),))
    refuse(InvalidRequest, "files", files=(InputFile("main.py/x", b""),))
    plan(ExecRequest(Command(("python3", "main.py")), files=(InputFile("main.py", b""),)))


@pytest.mark.parametrize("mode", [0o1777, 0o4755, -1])
def test_a_file_mode_has_permission_bits_only(mode: int) -> None:
    refuse(InvalidRequest, "files", files=(InputFile("a", b"", mode),))


def test_ids_are_uuid_version_7_of_this_moment_and_never_the_same() -> None:
    made = [mint_exec_id() for _ in range(10_000)]
    assert len(set(made)) == len(made)
    for text in made[:100]:
        value = uuid.UUID(text)
        assert (value.version, value.variant, str(value)) == (7, uuid.RFC_4122, text)
    stamps = [text[:13] for text in made]
    assert stamps == sorted(stamps)


TEXT = st.text(max_size=30)
NUMBER = st.none() | st.integers() | st.floats() | st.booleans()
REQUESTS = st.builds(
    ExecRequest,
    program=st.builds(Snippet, st.sampled_from(["python", "js", "bash", "x"]) | TEXT, TEXT)
    | st.builds(Command, st.lists(TEXT, max_size=4).map(tuple)),
    files=st.lists(st.builds(InputFile, TEXT, st.binary(max_size=10), st.integers(0, 0o7777)), max_size=4).map(tuple),
    stdin=st.binary(max_size=10),
    args=st.lists(TEXT, max_size=4).map(tuple),
    env=st.lists(st.tuples(TEXT, TEXT), max_size=4).map(tuple),
    limits=st.builds(LimitsOverride, *[NUMBER] * 7),
    network=st.just("none") | TEXT,
    isolation=st.none() | TEXT,
    template=st.none() | TEXT,
    session=st.none() | st.builds(SessionUse, TEXT, TEXT, fresh=st.booleans()),
    collect=st.lists(TEXT, max_size=4).map(tuple),
    packages=st.just(()) | st.lists(TEXT, max_size=2).map(tuple),
)


@given(REQUESTS)
def test_every_request_gives_a_plan_within_the_ceilings_or_a_callers_error(request: ExecRequest) -> None:
    try:
        made = plan(request)
    except CallerError:
        return
    for name in NAMES:
        assert getattr(MINIMUM, name) <= getattr(made.limits, name) <= getattr(MAXIMUM, name)
    for file in made.step.files:
        assert ".." not in file.path.split("/")
        assert not file.path.startswith("/") or file.path.startswith("/tmp/")
    " ".join(made.step.argv).encode()
