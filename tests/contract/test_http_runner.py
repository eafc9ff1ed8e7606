"""Runner's document, example by example, through the application: under its prefix, at root, and alone."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from sandfork.dialects.base import LanguageState
from sandfork.errors import ImageError, Overloaded, TemplateFailed, UnknownLanguage
from sandfork.images.snapshots import encode_snapshot
from sandfork.images.state import REMOTE, Kind, RootfsState
from sandfork.model import Command, ExecRequest, ExecResult, Outcome, Snippet, TemplateHealth, Timings
from tests.support.asgi import Client
from tests.support.clock import in_virtual_time
from tests.support.dialects import exact_places, places
from tests.support.stub_engine import StubEngine, elapse, ended, stub_app

KEYS = b'["zb_live_key1"]'
NODE, PYTHON = ("/usr/bin/node", "--version"), ("/usr/bin/python3", "--version")
IMAGE = f"python@sha256:{'a' * 64}"
COBC = ("/usr/bin/cobc", "-x", "-o", "{out}", "{name}")
LANGUAGES = (
    LanguageState("cobol", (), ".cob", ("{out}",), "command", False, compile=COBC),
    LanguageState(
        "node", ("javascript", "nodejs"), ".js", ("/usr/bin/node", "{file}"), "node", True, version_argv=NODE
    ),
    LanguageState(
        "python",
        ("py",),
        ".py",
        ("/usr/bin/python3", "{file}"),
        "python",
        True,
        version_argv=PYTHON,
        image=IMAGE,
        image_bytes=7,
        commands="command@python",
    ),
)
everywhere = places("runner")
exactly = exact_places("runner")

HELLO = {"language": "python", "code": 'print("Hello World!")', "timeout": 30}
PROGRAMS = [
    ("python", "print(sum(range(100)))"),
    ("nodejs", "console.log(Array.from({length:10},(_,i)=>i*i))"),
    ("go", 'package main\nimport "fmt"\nfunc main() { fmt.Println("Hello Go!") }'),
    ("rust", 'fn main() { println!("Hello Rust!"); }'),
]


@everywhere
@in_virtual_time
async def test_the_first_example_is_answered_as_printed(base: str, dialect: str | None) -> None:
    result = ended(stdout=b"Hello World!\n", timings=Timings(0.0, 0.125, 0.045, 0.17))
    engine = StubEngine(lambda request: result)
    answer = await Client(stub_app(engine, dialect=dialect)).post(f"{base}/api/v1/execute", HELLO)
    assert answer.status == 200
    assert answer.json == {
        "stdout": "Hello World!\n",
        "stderr": "",
        "exit_code": 0,
        "load_time": "125ms",
        "exec_time": "45ms",
    }
    assert engine.requests[0].program == Snippet("python", HELLO["code"])
    assert engine.requests[0].limits.wall_s == 30.0


@everywhere
@pytest.mark.parametrize(("language", "code"), PROGRAMS, ids=[language for language, _ in PROGRAMS])
@in_virtual_time
async def test_every_language_example_reaches_the_engine(
    base: str, dialect: str | None, language: str, code: str
) -> None:
    engine = StubEngine()
    answer = await Client(stub_app(engine, dialect=dialect)).post(
        f"{base}/api/v1/execute", {"language": language, "code": code}
    )
    assert answer.status == 200
    assert engine.requests[0].program == Snippet(language, code)
    assert engine.requests[0].limits.wall_s == 30.0


@exactly
@in_virtual_time
async def test_health_is_answered_as_printed_without_a_key(base: str, dialect: str | None) -> None:
    answer = await Client(stub_app(keys=KEYS, dialect=dialect)).get(f"{base}/health")
    assert (answer.status, answer.json) == (200, {"status": "healthy", "version": "1.2.3"})


@exactly
@in_virtual_time
async def test_health_is_503_when_no_template_is_ready(base: str, dialect: str | None) -> None:
    engine = StubEngine(templates=(TemplateHealth("python", False, 0, 0, 0, "no interpreter"),))
    answer = await Client(stub_app(engine, dialect=dialect)).get(f"{base}/health")
    assert (answer.status, answer.json["status"]) == (503, "unhealthy")


@everywhere
@in_virtual_time
async def test_languages_are_listed_by_their_names_here_and_only_what_can_be_run_is_counted(
    base: str, dialect: str | None
) -> None:
    engine = StubEngine(lambda request: ended(stdout=b"v20.20.2\n"))
    client = Client(stub_app(engine, dialect=dialect, languages=LANGUAGES))
    for _ in range(2):
        answer = await client.get(f"{base}/api/v1/languages")
        assert answer.status == 200
        assert answer.json == {
            "languages": [
                {
                    "name": "cobol",
                    "extension": ".cob",
                    "installed": False,
                    "aliases": [],
                    "version": None,
                    "image": None,
                },
                {
                    "name": "nodejs",
                    "extension": ".js",
                    "installed": True,
                    "aliases": ["node", "javascript"],
                    "version": "20.20.2",
                    "image": None,
                },
                {
                    "name": "python",
                    "extension": ".py",
                    "installed": True,
                    "aliases": ["py"],
                    "version": "20.20.2",
                    "image": IMAGE,
                },
            ],
            "count": 2,
        }
    assert [request.program for request in engine.requests] == [Command(NODE), Command(PYTHON)]
    assert [request.template for request in engine.requests] == ["command", "command@python"], "where it runs"


@in_virtual_time
async def test_a_list_does_not_wait_long_for_versions_and_has_them_the_next_time() -> None:
    free = asyncio.Event()

    async def wait_for_it(request: ExecRequest) -> ExecResult:
        await free.wait()
        return ended(stdout=b"1.2\n")

    client = Client(stub_app(StubEngine(wait_for_it), languages=LANGUAGES))
    first = await client.get("/runner/api/v1/languages")
    assert [each["version"] for each in first.json["languages"]] == [None, None, None]
    free.set()
    second = await client.get("/runner/api/v1/languages")
    assert [each["version"] for each in second.json["languages"]] == [None, "1.2", "1.2"]


@in_virtual_time
async def test_a_language_on_an_image_tells_which_and_how_large_it_is() -> None:
    answer = await Client(stub_app(languages=LANGUAGES)).get("/runner/api/v1/languages/python")
    assert (answer.json["image"], answer.json["image_size"]) == (IMAGE, 7)


@in_virtual_time
async def test_versions_are_found_since_the_start_while_no_program_runs() -> None:
    loop, others = asyncio.get_running_loop(), 0
    engine = StubEngine(lambda request: ended(stdout=b"1.2\n"))
    app = stub_app(engine, languages=LANGUAGES)
    finding = loop.create_task(app.find_versions(lambda: others + len(engine.requests)))
    for _ in range(10):
        await asyncio.sleep(1)
        others += 1
    assert not engine.requests, "programs ran all the time"
    await finding
    asked = loop.time()
    answer = await Client(app).get("/runner/api/v1/languages")
    assert [each["version"] for each in answer.json["languages"]] == [None, "1.2", "1.2"]
    assert [request.program for request in engine.requests] == [Command(NODE), Command(PYTHON)]
    assert loop.time() == asked


@in_virtual_time
async def test_the_first_list_waits_for_no_version_and_has_them_found_without_a_pause() -> None:
    engine = StubEngine(lambda request: ended(stdout=b"1.2\n"))
    app = stub_app(engine, languages=LANGUAGES)
    loop = asyncio.get_running_loop()
    finding = loop.create_task(app.find_versions(lambda: round(loop.time() * 100)))
    await asyncio.sleep(60)
    asked = loop.time()
    first = await Client(app).get("/runner/api/v1/languages")
    assert [each["version"] for each in first.json["languages"]] == [None, None, None]
    assert (loop.time(), engine.requests) == (asked, [])
    await finding
    assert loop.time() - asked <= 1, "no rest was waited for"
    second = await Client(app).get("/runner/api/v1/languages")
    assert [each["version"] for each in second.json["languages"]] == [None, "1.2", "1.2"]


@in_virtual_time
async def test_a_language_that_is_compiled_tells_how() -> None:
    answer = await Client(stub_app(languages=LANGUAGES)).get("/runner/api/v1/languages/cobol")
    assert answer.json["compile_command"] == "/usr/bin/cobc -x -o {out} {name}"
    assert answer.json["run_command"] == "{out}"


@in_virtual_time
async def test_a_language_whose_template_cannot_be_made_is_not_runnable() -> None:
    broken = TemplateHealth("node", False, 0, 0, 0, "no node")
    engine = StubEngine(templates=(TemplateHealth("python", True, 1, 1, 1), broken))
    answer = await Client(stub_app(engine, languages=LANGUAGES)).get("/runner/api/v1/languages")
    assert answer.json["count"] == 1
    assert [each["name"] for each in answer.json["languages"] if each["installed"]] == ["python"]


@everywhere
@in_virtual_time
async def test_one_language_is_told_in_full_with_the_version_it_tells_itself(base: str, dialect: str | None) -> None:
    engine = StubEngine(lambda request: ended(stdout=b"v20.20.2\n"))
    client = Client(stub_app(engine, dialect=dialect, languages=LANGUAGES))
    for name in ("nodejs", "node", "javascript", "nodejs"):
        answer = await client.get(f"{base}/api/v1/languages/{name}")
        assert answer.status == 200
        assert answer.json == {
            "name": "nodejs",
            "extension": ".js",
            "installed": True,
            "aliases": ["node", "javascript"],
            "version": "20.20.2",
            "image": None,
            "run_command": "/usr/bin/node {file}",
            "compile_command": None,
            "image_size": None,
        }
    assert [request.program for request in engine.requests] == [Command(("/usr/bin/node", "--version"))]


@in_virtual_time
async def test_no_version_is_told_of_what_is_not_installed_and_nothing_is_run() -> None:
    engine = StubEngine()
    answer = await Client(stub_app(engine, languages=LANGUAGES)).get("/runner/api/v1/languages/cobol")
    assert (answer.json["installed"], answer.json["version"], engine.requests) == (False, None, [])


@in_virtual_time
async def test_a_version_that_could_not_be_had_is_asked_for_again() -> None:
    answers: list[ExecResult | BaseException] = [Overloaded("full"), ended(stdout=b"", stderr=b"Python 3.11.2\n")]
    client = Client(stub_app(StubEngine(lambda request: answers.pop(0)), languages=LANGUAGES))
    told = [(await client.get("/runner/api/v1/languages/python")).json["version"] for _ in range(3)]
    assert told == [None, "3.11.2", "3.11.2"]


@everywhere
@in_virtual_time
async def test_an_unknown_language_is_404_in_a_path_and_400_in_a_body(base: str, dialect: str | None) -> None:
    engine = StubEngine(lambda request: UnknownLanguage("ruby2"))
    client = Client(stub_app(engine, dialect=dialect, languages=LANGUAGES))
    asked = await client.get(f"{base}/api/v1/languages/ruby2")
    run = await client.post(f"{base}/api/v1/execute", {"language": "ruby2", "code": ""})
    assert (asked.status, asked.json) == (404, {"error": "language not found: ruby2"})
    assert (run.status, run.json) == (400, {"error": "language not found: ruby2"})


@everywhere
@pytest.mark.parametrize("kind", ["rootfs", "snapshots"])
@pytest.mark.parametrize("query", ["", "?remote=false"])
@in_virtual_time
async def test_there_are_no_images_and_the_lists_say_so(base: str, dialect: str | None, kind: str, query: str) -> None:
    answer = await Client(stub_app(dialect=dialect)).get(f"{base}/api/v1/{kind}{query}")
    assert (answer.status, answer.json) == (200, {kind: []})


BUILDS = [
    ("rootfs", {"language": "python", "size_mb": 1024}),
    ("snapshots", {"language": "python", "mem_mb": 512, "vcpus": 1}),
]


@everywhere
@pytest.mark.parametrize(("kind", "body"), BUILDS)
@in_virtual_time
async def test_making_one_begins_as_printed_and_the_lists_tell_how_far_it_is(
    base: str, dialect: str | None, kind: str, body: dict[str, Any]
) -> None:
    engine = StubEngine(lambda request: ended(stdout=b"Python 3.11.2\n"))
    client = Client(stub_app(engine, dialect=dialect, languages=LANGUAGES))
    engine.kept.go.clear()
    answer = await client.post(f"{base}/api/v1/{kind}", body)
    what = kind.removesuffix("s") if kind == "snapshots" else kind
    assert (answer.status, answer.json) == (202, {"message": f"{what} creation started", "language": "python"})
    (entry,) = (await client.get(f"{base}/api/v1/{kind}")).json[kind]
    assert (entry["language"], entry["status"], entry["error"]) == ("python", "building", None)
    again = await client.post(f"{base}/api/v1/{kind}", body)
    assert (again.status, again.json["message"]) == (202, f"{what} creation is under way already")
    engine.kept.go.set()
    await elapse(1.0)
    (entry,) = (await client.get(f"{base}/api/v1/{kind}")).json[kind]
    assert entry == (await client.get(f"{base}/api/v1/{kind}/python")).json
    assert (entry["status"], entry["progress"], entry["source"]) == ("ready", 100, "local")
    if kind == "rootfs":
        assert (entry["size"], entry["path"]) == (1288490188, "/images/python")
        assert engine.kept.built == [("python", 1024)]
    else:
        assert (entry["mem_size"], entry["vcpus"], entry["toolchain"]) == (536870912, 1, "Python 3.11.2")
        assert entry["vmstate_size"] == len(encode_snapshot(engine.kept.snapshots["python"]))
        assert engine.requests[0].limits.memory_bytes == 512 << 20


@everywhere
@pytest.mark.parametrize(("kind", "body"), BUILDS)
@in_virtual_time
async def test_one_that_failed_says_why_until_it_is_made_or_removed(
    base: str, dialect: str | None, kind: str, body: dict[str, Any]
) -> None:
    engine = StubEngine()
    client = Client(stub_app(engine, dialect=dialect, languages=LANGUAGES))
    engine.kept.failure = ImageError("the disk is full")
    await client.post(f"{base}/api/v1/{kind}", body)
    await elapse(1.0)
    (entry,) = (await client.get(f"{base}/api/v1/{kind}")).json[kind]
    assert (entry["status"], entry["error"]) == ("failed", "the disk is full")
    gone = await client.send("DELETE", f"{base}/api/v1/{kind}/python")
    assert (gone.status, gone.json["name"]) == (200, "python")
    again = await client.send("DELETE", f"{base}/api/v1/{kind}/python")
    assert (again.status, set(again.json)) == (404, {"error"})
    assert (await client.get(f"{base}/api/v1/{kind}/python")).status == 404


@everywhere
@pytest.mark.parametrize(("kind", "body"), BUILDS)
@in_virtual_time
async def test_what_cannot_be_made_is_refused_at_once(
    base: str, dialect: str | None, kind: str, body: dict[str, Any]
) -> None:
    client = Client(stub_app(dialect=dialect, languages=LANGUAGES))
    unknown = await client.post(f"{base}/api/v1/{kind}", {**body, "language": "ruby2"})
    assert (unknown.status, unknown.json) == (400, {"error": "language not found: ruby2"})
    wrong = await client.post(f"{base}/api/v1/{kind}", {"language": 7})
    assert (wrong.status, wrong.json["error"].partition(":")[0]) == (400, "language")
    field = "size_mb" if kind == "rootfs" else "mem_mb"
    above = await client.post(f"{base}/api/v1/{kind}", {**body, field: 1 << 20})
    assert (above.status, above.json["error"].partition(":")[0]) == (403, field)
    path = await client.post(f"{base}/api/v1/snapshots", {"language": "python", "name": "../../etc/passwd"})
    assert path.status == 400


@everywhere
@in_virtual_time
async def test_the_lists_of_the_bucket_are_told_apart(base: str, dialect: str | None) -> None:
    engine = StubEngine()
    client = Client(stub_app(engine, dialect=dialect))
    none = await client.get(f"{base}/api/v1/rootfs?remote=true")
    assert (none.status, none.json) == (501, {"error": "there is no bucket"})
    engine.kept.bucket = {Kind.ROOTFS: [RootfsState("x", ("node",), 5, "s3://b/k", REMOTE)], Kind.SNAPSHOT: []}
    (entry,) = (await client.get(f"{base}/api/v1/rootfs?remote=true")).json["rootfs"]
    assert (entry["language"], entry["size"], entry["path"], entry["source"]) == ("nodejs", 5, "s3://b/k", "s3")
    assert (await client.get(f"{base}/api/v1/rootfs?remote=false")).json == {"rootfs": []}
    assert (await client.get(f"{base}/api/v1/rootfs?remote=maybe")).status == 400


@everywhere
@pytest.mark.parametrize(
    ("partial", "expected"),
    [
        (b"", "Execution timed out"),
        (b"half a line", "half a line\nExecution timed out"),
        (b"a line\n", "a line\nExecution timed out"),
    ],
)
@in_virtual_time
async def test_a_timeout_is_200_with_124_and_keeps_the_output_so_far(
    base: str, dialect: str | None, partial: bytes, expected: str
) -> None:
    result = ended(outcome=Outcome.TIMED_OUT, exit_code=None, signal=9, stdout=b"so far", stderr=partial)
    client = Client(stub_app(StubEngine(lambda request: result), dialect=dialect))
    answer = await client.post(f"{base}/api/v1/execute", {"language": "python", "code": "while 1: pass", "timeout": 2})
    assert answer.status == 200
    assert (answer.json["exit_code"], answer.json["stdout"], answer.json["stderr"]) == (124, "so far", expected)


@everywhere
@in_virtual_time
async def test_a_program_that_fails_is_200_with_its_own_status(base: str, dialect: str | None) -> None:
    results = [ended(exit_code=3, stderr=b"no\n"), ended(outcome=Outcome.SIGNALLED, exit_code=None, signal=11)]
    client = Client(stub_app(StubEngine(lambda request: results.pop(0)), dialect=dialect))
    first, second = [(await client.post(f"{base}/api/v1/execute", HELLO)).json for _ in range(2)]
    assert (first["exit_code"], first["stderr"], second["exit_code"]) == (3, "no\n", 139)


@everywhere
@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"code": ""}, "language"),
        ({"language": "", "code": ""}, "language"),
        ({"language": "python"}, "code"),
        ({"language": 1, "code": ""}, "language"),
        ({"language": "python", "code": None}, "code"),
        ({"language": "python", "code": "", "timeout": "30"}, "timeout"),
        ({"language": "python", "code": "", "timeout": -1}, "timeout"),
        ({"language": "python", "code": "", "timeout": 0}, "timeout"),
        ({"language": "python", "code": "", "timeout": 1.5}, "timeout"),
        ({"language": "python", "code": "x" * ((1 << 20) + 1)}, "code"),
    ],
)
@in_virtual_time
async def test_a_wrong_field_is_400_and_named(base: str, dialect: str | None, body: dict[str, Any], field: str) -> None:
    answer = await Client(stub_app(dialect=dialect)).post(f"{base}/api/v1/execute", body)
    assert (answer.status, set(answer.json)) == (400, {"error"})
    assert answer.json["error"].startswith(f"{field}: ")


@everywhere
@in_virtual_time
async def test_unknown_fields_are_ignored_and_a_long_timeout_is_lowered(base: str, dialect: str | None) -> None:
    engine = StubEngine()
    client = Client(stub_app(engine, dialect=dialect))
    answer = await client.post(f"{base}/api/v1/execute", {**HELLO, "timeout": 10**30, "stdin": {"no": 1}})
    assert answer.status == 200
    assert engine.requests[0].limits.wall_s == 300.0


@everywhere
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/api/v1/execute"),
        ("GET", "/api/v1/languages"),
        ("GET", "/api/v1/languages/python"),
        ("GET", "/api/v1/rootfs"),
        ("POST", "/api/v1/snapshots"),
    ],
)
@in_virtual_time
async def test_where_there_are_keys_one_is_asked_for(base: str, dialect: str | None, method: str, path: str) -> None:
    client = Client(stub_app(keys=KEYS, dialect=dialect, languages=LANGUAGES))
    missing = await client.send(method, base + path, [b"{}"])
    wrong = await client.send(method, base + path, [b"{}"], [("authorization", "Bearer no")])
    assert [(each.status, set(each.json)) for each in (missing, wrong)] == [(401, {"error"})] * 2
    right = await client.send(method, base + path, [b'{"language": "python"}'], [("x-api-key", "zb_live_key1")])
    assert right.status in (200, 202, 400)


@exactly
@in_virtual_time
async def test_every_error_has_one_field(base: str, dialect: str | None) -> None:
    engine = StubEngine(lambda request: TemplateFailed("a secret path"))
    client = Client(stub_app(engine, dialect=dialect, max_body_bytes=1000))
    answers = [
        await client.post(f"{base}/api/v1/execute", b"{"),
        await client.post(f"{base}/api/v1/execute", b"x" * 1001),
        await client.post(f"{base}/api/v1/execute", HELLO, content_type="text/plain"),
        await client.get(f"{base}/api/v1/execute"),
        await client.get(f"{base}/api/v1/nothing"),
        await client.post(f"{base}/api/v1/execute", HELLO),
    ]
    assert [answer.status for answer in answers] == [400, 413, 415, 405, 404, 500]
    assert all(set(answer.json) == {"error"} and "secret" not in answer.json["error"] for answer in answers)


@in_virtual_time
async def test_pages_of_other_sites_may_not_ask_a_server_without_keys() -> None:
    client = Client(stub_app(languages=LANGUAGES), {"Origin": "http://evil.example"})
    assert (await client.get("/runner/api/v1/languages/python")).status == 403


@in_virtual_time
async def test_a_client_that_goes_away_in_its_body_is_left_alone() -> None:
    gone = asyncio.Event()
    gone.set()
    client = Client(stub_app(languages=LANGUAGES))
    assert (await client.send("POST", "/runner/api/v1/rootfs", [], gone=gone)).status == 0


@in_virtual_time
async def test_finding_out_a_version_is_charged() -> None:
    def rule(request: ExecRequest) -> BaseException:
        return Overloaded("full")

    keys = b'[{"name": "slow", "key": "k1", "rate_per_s": 1}]'
    client = Client(stub_app(StubEngine(rule), keys=keys, languages=LANGUAGES), {"X-API-Key": "k1"})
    statuses = [(await client.get("/runner/api/v1/languages/python")).status for _ in range(2)]
    assert statuses == [200, 429]
