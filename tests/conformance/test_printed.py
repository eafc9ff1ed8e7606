"""Every call that the five documents print, sent as printed, in each way a client may reach the dialect.

What is compared is the whole answer: its status, every printed field in its place and of its type, and of equal value
where the document does not merely show an instance. A field that is not printed must be known here as one of ours.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.dialects import shape
from tests.support.instavm import clients_python
from tests.support.service import STUCK_S, Service, running_service

WAYS = ("prefix", "root", "alone")
HEADERS = {"Authorization": "Bearer your-api-key", "Content-Type": "application/json"}
#: What a document shows an instance of: only its type is compared.
INSTANCES = {
    "zeroboot": {"id", "fork_time_ms", "exec_time_ms", "total_time_ms", "memory_mb"},
    "isol8": {"version", "durationMs", "executionId", "timestamp", "containerId"},
    "runner": {"version", "count", "load_time", "exec_time"},
    "instavm": {"loc", "msg", "type"},
    "faber": {"timestamp", "version", "resource_usage"},
}
#: What is told beyond the documents.
OURS = {
    "zeroboot": set[str](),
    "isol8": {"resourceUsage"},
    "runner": {"installed", "aliases", "image"},
    "instavm": set[str](),
    "faber": set[str](),
}
#: What our own API, which answers for zeroboot's at root, tells beyond it.
AT_ROOT = {
    *("outcome", "signal", "truncated", "usage", "limits", "isolation", "failed_step", "displays", "files"),
    *("queue_time_ms", "files_skipped", "image"),
}


TOOLCHAINS = {"go": "/usr/bin/go", "rust": "/usr/bin/rustc"}

BaseOf = Callable[[str, str], str]


@dataclass(frozen=True)
class Printed:
    """A printed call: `reply` is as printed, `at_root` False where several have the path.

    `toolchain` is the program of a language that not every host has.
    """

    dialect: str
    name: str
    call: str
    body: str | None = None
    reply: str | None = None
    status: int = 200
    at_root: bool = True
    check: Callable[[httpx.Response], None] = field(default=lambda answer: None)
    toolchain: str = ""

    def __str__(self) -> str:
        return f"{self.dialect}-{self.name}"


def stdout(text: str) -> Callable[[httpx.Response], None]:
    """Return what checks that a program printed that."""

    def check(answer: httpx.Response) -> None:
        reply = answer.json()
        assert (reply["stdout"], reply["stderr"]) == (text, ""), reply

    return check


def until_made(answer: httpx.Response) -> None:
    """Wait until nothing is being made any more: what is asked for meanwhile is told that it is under way."""
    until = time.monotonic() + STUCK_S
    while any(each["status"] == "building" for each in httpx.get(answer.request.url).json()["snapshots"]):
        assert time.monotonic() < until


def stdouts(*patterns: str) -> Callable[[httpx.Response], None]:
    """Return what checks that every task succeeded and what it printed."""

    def check(answer: httpx.Response) -> None:
        results = answer.json()["results"]
        assert [each["status"] for each in results] == ["Success"] * len(patterns), results
        for result, pattern in zip(results, patterns, strict=True):
            assert re.fullmatch(pattern, result["stdout"], re.DOTALL), result
        for name in ("limit", "remaining", "reset"):
            assert int(answer.headers[f"x-ratelimit-{name}"]) >= 0

    return check


def three_numbers(answer: httpx.Response) -> None:
    assert re.fullmatch(r"\[\s*(0\.\d+(e-\d+)?\s*){3}\]\n", answer.json()["stdout"]), answer.text


def metrics(answer: httpx.Response) -> None:
    assert answer.headers["content-type"].startswith("text/plain")
    for name in ("fork_time_milliseconds_bucket", "exec_time_milliseconds_bucket", 'total_executions{status="error"}'):
        assert f"\nzeroboot_{name}" in answer.text


def events(*wanted: tuple[str, str]) -> Callable[[httpx.Response], None]:
    """Return what checks what a stream told; chunks of output may come together."""

    def check(answer: httpx.Response) -> None:
        assert answer.headers["content-type"] == "text/event-stream"
        told: list[list[str]] = []
        for line in answer.text.splitlines():
            assert not line or line.startswith("data: "), line
            if line:
                event = json.loads(line.removeprefix("data: "))
                assert list(event) == ["type", "data"]
                if told and told[-1][0] == event["type"]:
                    told[-1][1] += event["data"]
                else:
                    told.append([event["type"], event["data"]])
        assert [tuple(each) for each in told] == list(wanted)

    return check


def template_sizes(answer: httpx.Response) -> None:
    """Python and node are printed; a server with more languages has more templates."""
    health = answer.json()
    assert health["status"] == "ok"
    for name in ("python", "node"):
        template = health["templates"][name]
        assert template["ready"] is True
        assert type(template["memory_mb"]) is int


def invalid(answer: httpx.Response) -> None:
    """The body is what the printed schema calls HTTPValidationError."""
    assert list(answer.json()) == ["detail"]
    for each in answer.json()["detail"]:
        assert shape(each) == {"loc": ["str"] * len(each["loc"]), "msg": "str", "type": "str"}
        assert each["loc"][0] == "body"


def names_first(answer: httpx.Response) -> None:
    """The languages the document begins with are known by these names and extensions."""
    known = {each["name"]: each["extension"] for each in answer.json()["languages"]}
    printed = {"python": ".py", "nodejs": ".js", "go": ".go", "rust": ".rs"}
    assert printed.items() <= known.items()


def execute_is_described(answer: httpx.Response) -> None:
    assert any(path.endswith("/execute") for path in answer.json()["paths"])


def names_packages(answer: httpx.Response) -> None:
    """No sandbox reaches a package index: the document's own first request is refused and nothing of it is run."""
    assert list(answer.json()) == ["error"]
    assert "ackages" in answer.json()["error"]


def swagger(answer: httpx.Response) -> None:
    assert answer.headers["content-type"].startswith("text/html")
    assert "/api-docs/openapi.json" in answer.text


ZEROBOOT = (
    Printed(
        "zeroboot",
        "exec",
        "POST /v1/exec",
        '{"code": "print(1 + 1)", "language": "python", "timeout_seconds": 30}',
        '{"id": "019cf684-1fd5-73c0-9299-52253f9aa79c", "stdout": "2\\n", "stderr": "", "exit_code": 0,'
        ' "fork_time_ms": 0.75, "exec_time_ms": 7.2, "total_time_ms": 8.0}',
    ),
    Printed(
        "zeroboot",
        "curl",
        "POST /v1/exec",
        '{"code": "import numpy; print(numpy.random.rand(3))", "language": "python"}',
        check=three_numbers,
    ),
    *(
        Printed("zeroboot", word, "POST /v1/exec", json.dumps({"code": code, **more}), check=stdout("2\n"))
        for word, code, more in (
            ("default-language", "print(1 + 1)", {}),
            ("node", "console.log(2)", {"language": "node"}),
            ("javascript", "console.log(2)", {"language": "javascript"}),
        )
    ),
    Printed(
        "zeroboot",
        "batch",
        "POST /v1/exec/batch",
        '{"executions": [{"code": "print(1)", "language": "python"}, {"code": "console.log(2)", "language": "node"}]}',
        '{"results": [{"id": "...", "stdout": "1\\n", "stderr": "", "exit_code": 0, "fork_time_ms": 0.72,'
        ' "exec_time_ms": 6.8, "total_time_ms": 7.5}, {"id": "...", "stdout": "2\\n", "stderr": "", "exit_code": 0,'
        ' "fork_time_ms": 0.81, "exec_time_ms": 12.1, "total_time_ms": 12.9}]}',
    ),
    Printed("zeroboot", "health", "GET /v1/health", check=template_sizes),
    Printed("zeroboot", "metrics", "GET /v1/metrics", check=metrics),
)
ISOL8_REQUEST = (
    '{"request": {"code": "print(\'hello\')", "runtime": "python", "timeoutMs": 5000, "env": {"MY_VAR": "value"},'
    ' "stdin": "input data", "files": {"/sandbox/data.csv": "a,b\\n1,2"}, "outputPaths": ["/sandbox/out.txt"]%s},'
    ' "options": {"network": "none", "memoryLimit": "512m", "cpuLimit": 1.0, "timeoutMs": 30000, "sandboxSize": "64m",'
    ' "tmpSize": "64m"}, "sessionId": "%s"}'
)
ISOL8 = (
    Printed("isol8", "health", "GET /health", None, '{"status": "ok", "version": "0.1.0"}', at_root=False),
    Printed(
        "isol8",
        "execute",
        "POST /execute",
        ISOL8_REQUEST % ("", "my-session"),
        '{"stdout": "hello\\n", "stderr": "", "exitCode": 0, "durationMs": 82, "truncated": false, "executionId":'
        ' "550e8400-e29b-41d4-a716-446655440000", "runtime": "python", "timestamp": "2026-02-14T12:00:00.000Z",'
        ' "containerId": "abc123", "files": {}}',
    ),
    Printed(
        "isol8",
        "execute-with-a-package",
        "POST /execute",
        ISOL8_REQUEST % (', "installPackages": ["numpy"]', "my-session"),
        status=501,
        check=names_packages,
    ),
    Printed(
        "isol8",
        "stream",
        "POST /execute/stream",
        '{"request": {"code": "for i in range(3): print(i)", "runtime": "python"}}',
        check=events(("stdout", "0\n1\n2\n"), ("exit", "0")),
    ),
    Printed(
        "isol8",
        "stream-of-both",
        "POST /execute/stream",
        json.dumps(
            {
                "request": {
                    "code": "echo Hello; sleep 0.2; echo Warning: deprecated >&2",
                    "runtime": "bash",
                },
                "sessionId": "no-such-session",
            }
        ),
        check=events(("stdout", "Hello\n"), ("stderr", "Warning: deprecated\n"), ("exit", "0")),
    ),
    Printed(
        "isol8",
        "upload",
        "POST /file",
        '{"sessionId": "my-session", "path": "/sandbox/output.json", "content": "eyJyZXN1bHQiOiAxfQ=="}',
    ),
    Printed(
        "isol8",
        "download",
        "GET /file?sessionId=my-session&path=/sandbox/output.json",
        reply='{"content": "eyJyZXN1bHQiOiAxfQ=="}',
    ),
    Printed(
        "isol8",
        "upload-nowhere",
        "POST /file",
        '{"sessionId": "no-such", "path": "/sandbox/data.csv", "content": "Y29sMSxjb2wyCjEsMg=="}',
        '{"error": "Session not found"}',
        404,
    ),
    Printed(
        "isol8",
        "download-nowhere",
        "GET /file?sessionId=no-such&path=/sandbox/output.json",
        reply='{"error": "Session not found"}',
        status=404,
    ),
    Printed(
        "isol8",
        "download-nothing",
        "GET /file?sessionId=my-session",
        reply='{"error": "Missing sessionId or path"}',
        status=400,
    ),
    *(
        Printed("isol8", f"delete-{word}", "DELETE /session/my-session", reply='{"ok": true}')
        for word in ("first", "again")
    ),
)
RUNNER = (
    Printed("runner", "health", "GET /health", None, '{"status": "healthy", "version": "1.0.0"}', at_root=False),
    Printed(
        "runner",
        "quick-start",
        "POST /api/v1/execute",
        '{"language": "python", "code": "print(1 + 1)"}',
        check=stdout("2\n"),
    ),
    Printed(
        "runner",
        "execute",
        "POST /api/v1/execute",
        '{"language": "python", "code": "print(\\"Hello World!\\")", "timeout": 30}',
        '{"stdout": "Hello World!\\n", "stderr": "", "exit_code": 0, "load_time": "125ms", "exec_time": "45ms"}',
    ),
    *(
        Printed("runner", word, "POST /api/v1/execute", body, check=stdout(printed), toolchain=TOOLCHAINS.get(word, ""))
        for word, body, printed in (
            ("python", '{"language": "python", "code": "print(sum(range(100)))"}', "4950\n"),
            (
                "nodejs",
                '{"language": "nodejs", "code": "console.log(Array.from({length:10},(_,i)=>i*i))"}',
                "[\n   0,  1,  4,  9, 16,\n  25, 36, 49, 64, 81\n]\n",
            ),
            (
                "go",
                (
                    '{"language": "go", "code": "package main\\nimport \\"fmt\\"\\n'
                    'func main() { fmt.Println(\\"Hello Go!\\") }"}'
                ),
                "Hello Go!\n",
            ),
            ("rust", '{"language": "rust", "code": "fn main() { println!(\\"Hello Rust!\\"); }"}', "Hello Rust!\n"),
        )
    ),
    Printed("runner", "languages", "GET /api/v1/languages", check=names_first),
    Printed("runner", "rootfs", "GET /api/v1/rootfs", reply='{"rootfs": []}'),
    Printed("runner", "snapshots", "GET /api/v1/snapshots"),
    Printed(
        "runner",
        "create-snapshot",
        "POST /api/v1/snapshots",
        '{"language": "python", "mem_mb": 512, "vcpus": 1}',
        '{"message": "snapshot creation started", "language": "python"}',
        202,
        check=until_made,
    ),
    *(
        Printed("runner", word, call, body, '{"error": "language not found: ruby2"}', status)
        for word, call, body, status in (
            ("no-such-language", "GET /api/v1/languages/ruby2", None, 404),
            ("nothing-to-run-it", "POST /api/v1/execute", '{"language": "ruby2", "code": ""}', 400),
        )
    ),
)
INSTAVM = (
    Printed("instavm", "command", "POST /execute", '{"command": "print(1 + 1)"}', check=stdout("2\n")),
    Printed(
        "instavm",
        "every-field",
        "POST /execute",
        '{"command": null, "code": "print(1 + 1)", "api_key": null, "session_id": null, "language": "python",'
        ' "timeout": 60, "vault_ids": null}',
        check=stdout("2\n"),
    ),
    *(
        Printed("instavm", word, "POST /execute", body, status=422, check=invalid)
        for word, body in (
            ("timeout-too-large", '{"command": "", "timeout": 601}'),
            ("timeout-too-small", '{"command": "", "timeout": 0}'),
            ("wrong-type", '{"command": 1}'),
        )
    ),
)
FABER_RESULT = (
    '{"results": [{"status": "Success", "exit_code": 0, "stdout": "hello world\\n", "stderr": null, "error": null,'
    ' "resource_usage": {"cpu_time_ns": 1000000, "wall_time_ns": 5000000, "memory_peak_bytes": 1048576,'
    ' "memory_current_bytes": 524288, "process_count": 1, "file_descriptors": 3, "io_read_bytes": 0,'
    ' "io_write_bytes": 12, "system_time_ns": 500000, "user_time_ns": 500000}, "resource_limits_exceeded":'
    ' {"cpu_time_limit_exceeded": false, "wall_time_limit_exceeded": false, "process_limit_exceeded": false,'
    ' "file_descriptor_limit_exceeded": false, "output_limit_exceeded": false}}]}'
)
LIMITS = (
    '"resource_limits": {"memory_limit": 536870912, "cpu_time_limit": 30000000000, "wall_time_limit": 60000000000,'
    ' "max_processes": 10, "max_file_descriptors": 100, "max_output_size": 1048576}'
)


def faber(name: str, *tasks: str, outputs: tuple[str, ...]) -> Printed:
    """Return a call with these tasks, each of which succeeds and prints what matches its pattern."""
    return Printed(
        "faber",
        name,
        "POST /execute",
        json.dumps({"tasks": [json.loads(task) for task in tasks]}),
        check=stdouts(*outputs),
    )


def timed_out(answer: httpx.Response) -> None:
    """The document's constrained task sleeps for as long as its wall time: whichever is first, it is held to it."""
    (result,) = answer.json()["results"]
    assert result["status"] in ("Success", "Timeout"), result
    assert result["resource_limits_exceeded"]["wall_time_limit_exceeded"] is (result["status"] == "Timeout")
    assert result["resource_usage"]["wall_time_ns"] >= 10_000_000_000 - 500_000_000


FABER = (
    Printed(
        "faber",
        "health",
        "GET /health",
        None,
        '{"status": "healthy", "timestamp": "2024-01-01T12:00:00Z", "version": "0.1.0"}',
        at_root=False,
    ),
    Printed(
        "faber",
        "execute",
        "POST /execute",
        '{"tasks": [{"command": "echo", "args": ["hello", "world"], "env": {"CUSTOM_VAR": "value"}, "files":'
        ' {"script.py": "print(\'Hello from Python\')"}, ' + LIMITS + "}]}",
        FABER_RESULT,
    ),
    faber("command", '{"command": "ls", "args": ["-la"]}', outputs=("total .*",)),
    faber(
        "script",
        '{"command": "python", "args": ["script.py"], "files": {"script.py":'
        " \"print('Hello from Python')\\nimport sys\\nprint(f'Python version: {sys.version}')\"}}",
        outputs=(r"Hello from Python\nPython version: 3\..*\n",),
    ),
    faber(
        "environment",
        '{"command": "env", "env": {"CUSTOM_VAR": "custom_value", "DEBUG": "true"}}',
        outputs=("(?=.*^CUSTOM_VAR=custom_value$)(?=.*^DEBUG=true$).*".replace("^", "(?m:^)").replace("$", "(?m:$)"),),
    ),
    faber("limits", '{"command": "echo", ' + LIMITS + "}", outputs=("\n",)),
    faber("echo", '{"command": "echo", "args": ["Hello, Faber!"]}', outputs=("Hello, Faber!\n",)),
    faber(
        "python",
        '{"command": "python", "args": ["script.py"], "files": {"script.py":'
        ' "import sys\\nprint(f\\"Python {sys.version}\\")\\nprint(\\"Hello from sandbox!\\")"}, "env":'
        ' {"PYTHONPATH": "/tmp"}}',
        outputs=(r"Python 3\..*\nHello from sandbox!\n",),
    ),
    faber(
        "several",
        '{"command": "echo", "args": ["Task 1"]}',
        '{"command": "python", "args": ["-c", "print(\\"Task 2\\")"]}',
        '{"command": "bash", "args": ["-c", "echo \\"Task 3\\""]}',
        outputs=("Task 1\n", "Task 2\n", "Task 3\n"),
    ),
    Printed(
        "faber",
        "constrained",
        "POST /execute",
        '{"tasks": [{"command": "python", "args": ["-c", "import time; time.sleep(10)"], "resource_limits":'
        ' {"memory_limit": 268435456, "cpu_time_limit": 5000000000, "wall_time_limit": 10000000000,'
        ' "max_processes": 5}}]}',
        check=timed_out,
    ),
    Printed(
        "faber",
        "no-command",
        "POST /execute",
        '{"tasks": [{"command": ""}]}',
        '{"error": "Validation error", "details": "Invalid command: command cannot be empty"}',
        400,
    ),
    Printed("faber", "swagger-ui", "GET /swagger-ui", check=swagger),
    Printed(
        "faber",
        "openapi",
        "GET /api-docs/openapi.json",
        check=execute_is_described,
    ),
)
PRINTED = (*ZEROBOOT, *ISOL8, *RUNNER, *INSTAVM, *FABER)
#: A health document at root is that of all dialects: tests/contract/test_http_root.py has its fields.
CALLS = [(printed, way) for printed in PRINTED for way in WAYS if printed.at_root or way != "root"]


@pytest.fixture(scope="module")
def base_of(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[BaseOf]:
    """Return what gives the base address of a dialect by a way to reach it; a server of it alone is started once."""
    with ExitStack() as started:
        alone: dict[str, Service] = {}

        def base(dialect: str, way: str) -> str:
            if way != "alone":
                return service.url + (f"/{dialect}" if way == "prefix" else "")
            if dialect not in alone:
                directory = tmp_path_factory.mktemp(dialect)
                alone[dialect] = started.enter_context(running_service(directory, "--dialect", dialect))
            return alone[dialect].url

        yield base


def comparable(value: Any, dialect: str, further: set[str]) -> Any:
    """Return a JSON value without what is ours, and with the types of what a document shows an instance of."""
    if isinstance(value, dict):
        return {
            name: shape(inner) if name in INSTANCES[dialect] else comparable(inner, dialect, further)
            for name, inner in value.items()
            if name not in further
        }
    return [comparable(inner, dialect, further) for inner in value] if isinstance(value, list) else value


@pytest.mark.parametrize(("printed", "way"), CALLS, ids=str)
def test_a_printed_call_is_answered_as_printed(base_of: BaseOf, printed: Printed, way: str) -> None:
    if printed.toolchain and not Path(printed.toolchain).exists():
        pytest.skip(f"{printed.toolchain} is not installed")
    method, _, path = printed.call.partition(" ")
    url = base_of(printed.dialect, way) + path
    answer = httpx.request(method, url, content=printed.body, headers=HEADERS, timeout=STUCK_S)
    assert answer.status_code == printed.status, answer.text
    if printed.reply is not None:
        further = OURS[printed.dialect] | (AT_ROOT if (printed.dialect, way) == ("zeroboot", "root") else set())
        found, wanted = (
            json.dumps(comparable(json.loads(text), printed.dialect, further)) for text in (answer.text, printed.reply)
        )
        assert found == wanted
    printed.check(answer)


PYTHON_RUNNER = """
import requests

class RunnerClient:
    def __init__(self, url="http://localhost:8080"):
        self.url = url

    def execute(self, language, code, timeout=30):
        response = requests.post(
            f"{self.url}/api/v1/execute",
            json={"language": language, "code": code, "timeout": timeout}
        )
        return response.json()

client = RunnerClient(URL)
result = client.execute("python", "print(2 ** 10)")
print(result["stdout"])
"""
NODE_RUNNER = """
class RunnerClient {
  constructor(url = "http://localhost:8080") {
    this.url = url;
  }

  async execute(language, code, timeout = 30) {
    const res = await fetch(`${this.url}/api/v1/execute`, {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({ language, code, timeout })
    });
    return res.json();
  }
}

const client = new RunnerClient(URL_);
const result = await client.execute("nodejs", "console.log(2 ** 10)");
console.log(result.stdout);
"""
PYTHON_FABER = """
import requests

def execute_task(command, args=None, env=None):
    url = URL + "/execute"
    headers = {"Authorization": "Bearer your-api-key", "Content-Type": "application/json"}
    data = {"tasks": [{"command": command, "args": args or [], "env": env or {}}]}
    response = requests.post(url, json=data, headers=headers)
    return response.json()

print(execute_task("echo", ["1024"])["results"][0]["stdout"])
"""
NODE_FABER = """
async function executeTask(command, args = [], env = {}) {
  const url = URL_ + '/execute';
  const headers = { Authorization: 'Bearer your-api-key', 'Content-Type': 'application/json' };
  const data = { tasks: [{ command, args, env }] };
  const response = await fetch(url, { method: 'POST', headers, body: JSON.stringify(data) });
  return response.json();
}

console.log((await executeTask('echo', ['1024'])).results[0].stdout);
"""


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("dialect", "python"), [("runner", PYTHON_RUNNER), ("faber", PYTHON_FABER)])
def test_the_printed_client_in_python_works(base_of: BaseOf, way: str, dialect: str, python: str) -> None:
    words = [clients_python(), "-c", f"URL = {base_of(dialect, way)!r}\n{python}"]
    assert subprocess.check_output(words, timeout=STUCK_S) == b"1024\n\n"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("dialect", "script"), [("runner", NODE_RUNNER), ("faber", NODE_FABER)])
def test_the_printed_client_in_javascript_works(base_of: BaseOf, way: str, dialect: str, script: str) -> None:
    words = ["node", "--input-type=module", "-e", f"const URL_ = {base_of(dialect, way)!r};\n{script}"]
    assert subprocess.check_output(words, timeout=STUCK_S) == b"1024\n\n"
