"""Faber's document against the service itself, with real sandboxes: every printed call, every status, every limit."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.service import STUCK_S, Service, running_service

BASES = ["", "/faber"]
USAGE = {
    "cpu_time_ns",
    "wall_time_ns",
    "memory_peak_bytes",
    "memory_current_bytes",
    "process_count",
    "file_descriptors",
    "io_read_bytes",
    "io_write_bytes",
    "system_time_ns",
    "user_time_ns",
}
FLAGS = ("cpu_time", "wall_time", "process", "file_descriptor", "output")
SECOND = 1_000_000_000

everywhere = pytest.mark.parametrize("base", BASES, ids=["root", "prefix"])


def execute_task(url: str, command: str, args: list[str] | None = None, env: dict[str, str] | None = None) -> Any:
    """The function that the document prints, but for its fixed address."""
    headers = {"Authorization": "Bearer your-api-key", "Content-Type": "application/json"}
    data = {"tasks": [{"command": command, "args": args or [], "env": env or {}}]}
    return httpx.post(f"{url}/execute", json=data, headers=headers, timeout=STUCK_S).json()


def run_all(url: str, *tasks: dict[str, Any]) -> list[dict[str, Any]]:
    """Run tasks in one request and return their results."""
    answer = httpx.post(f"{url}/execute", json={"tasks": tasks}, timeout=STUCK_S)
    assert answer.status_code == 200, answer.text
    results: list[dict[str, Any]] = answer.json()["results"]
    assert len(results) == len(tasks)
    return results


def python(code: str, **task: Any) -> dict[str, Any]:
    return {"command": "python", "args": ["-c", code], **task}


def bash(line: str, **limits: int) -> dict[str, Any]:
    return {"command": "bash", "args": ["-c", line], "resource_limits": limits}


@everywhere
def test_the_printed_function_works(service: Service, base: str) -> None:
    (result,) = execute_task(service.url + base, "echo", ["Hello, Faber!"])["results"]
    assert (result["status"], result["exit_code"], result["stdout"]) == ("Success", 0, "Hello, Faber!\n")
    assert (result["stderr"], result["error"]) == (None, None)
    assert set(result["resource_usage"]) == USAGE
    assert result["resource_limits_exceeded"] == {f"{name}_limit_exceeded": False for name in FLAGS}


@everywhere
def test_the_first_example_has_the_printed_reply(service: Service, base: str) -> None:
    (result,) = run_all(
        service.url + base,
        {
            "command": "echo",
            "args": ["hello", "world"],
            "env": {"CUSTOM_VAR": "value"},
            "files": {"script.py": "print('Hello from Python')"},
            "resource_limits": {
                "memory_limit": 536870912,
                "cpu_time_limit": 30000000000,
                "wall_time_limit": 60000000000,
                "max_processes": 10,
                "max_file_descriptors": 100,
                "max_output_size": 1048576,
            },
        },
    )
    assert list(result) == [
        "status",
        "exit_code",
        "stdout",
        "stderr",
        "error",
        "resource_usage",
        "resource_limits_exceeded",
    ]
    assert (result["status"], result["stdout"]) == ("Success", "hello world\n")


@everywhere
def test_every_task_type_and_example_of_the_document_runs(service: Service, base: str) -> None:
    script = 'import sys\nprint(f"Python {sys.version}")\nprint("Hello from sandbox!")'
    listed, scripted, environment, first, second, third = run_all(
        service.url + base,
        {"command": "ls", "args": ["-la"]},
        {"command": "python", "args": ["script.py"], "files": {"script.py": script}, "env": {"PYTHONPATH": "/tmp"}},
        {"command": "env", "env": {"CUSTOM_VAR": "custom_value", "DEBUG": "true"}},
        {"command": "echo", "args": ["Task 1"]},
        {"command": "python", "args": ["-c", 'print("Task 2")']},
        {"command": "bash", "args": ["-c", 'echo "Task 3"']},
    )
    assert listed["stdout"].startswith("total ")
    assert scripted["stdout"].startswith("Python 3.")
    assert scripted["stdout"].endswith("\nHello from sandbox!\n")
    assert {"CUSTOM_VAR=custom_value", "DEBUG=true"} <= set(environment["stdout"].splitlines())
    assert [each["stdout"] for each in (first, second, third)] == ["Task 1\n", "Task 2\n", "Task 3\n"]
    assert {each["status"] for each in (listed, scripted, environment, first, second, third)} == {"Success"}


@everywhere
def test_sequential_tasks_share_a_directory_and_end_with_the_first_failure(service: Service, base: str) -> None:
    tasks = [
        {"command": "bash", "args": ["-c", "cat in > made; mkdir d"], "files": {"in": "1"}},
        python("open('d/a', 'w').write(open('made').read() * 3)"),
        bash("ls d; cat d/a; exit 3"),
        python("print('never')"),
    ]
    for _ in range(2):  # the second finds nothing of the first
        answer = httpx.post(f"{service.url}{base}/execute", json={"tasks": tasks, "sequential": True}, timeout=STUCK_S)
        results = answer.json()["results"]
        assert [each["status"] for each in results] == ["Success", "Success", "Failure", "NotExecuted"], results
        assert (results[2]["stdout"], results[2]["exit_code"]) == ("a\n111", 3)
        assert (results[3]["stdout"], results[3]["exit_code"]) == (None, None)
        assert set(results[0]["resource_usage"]) == USAGE


def test_each_sequential_task_has_its_own_time(service: Service) -> None:
    tasks = [
        {**python("print(1)"), "resource_limits": {"wall_time_limit": SECOND}},
        {**python("import time; time.sleep(99)"), "resource_limits": {"wall_time_limit": SECOND // 2}},
        python("print(3)"),
    ]
    answer = httpx.post(f"{service.url}/execute", json={"tasks": tasks, "sequential": True}, timeout=STUCK_S)
    results = answer.json()["results"]
    assert [each["status"] for each in results] == ["Success", "Timeout", "NotExecuted"]
    assert results[1]["resource_limits_exceeded"]["wall_time_limit_exceeded"] is True


@everywhere
def test_tasks_of_one_request_run_at_the_same_time_each_in_a_sandbox_of_its_own(service: Service, base: str) -> None:
    code = (
        "import os, time\n"
        "began = time.clock_gettime(time.CLOCK_MONOTONIC)\n"
        "open('mine', 'w').close()\n"
        "time.sleep(1.5)\n"
        "print(began, time.clock_gettime(time.CLOCK_MONOTONIC), os.listdir('.').count('mine'))"
    )
    results = run_all(service.url + base, *[python(code)] * 4)
    spans = [each["stdout"].split() for each in results]
    assert max(float(began) for began, _, _ in spans) < min(float(ended) for _, ended, _ in spans)
    assert {count for _, _, count in spans} == {"1"}


@everywhere
def test_every_status_is_reached(service: Service, base: str) -> None:
    results = run_all(
        service.url + base,
        bash("true"),
        bash("echo why >&2; exit 3"),
        {"command": "ls", "files": {"../escape": "x"}},
        bash("yes | head -c 3000000", max_output_size=1000),
        bash("sleep 30", wall_time_limit=SECOND // 2),
        python("x = b'x' * (100 << 20)", resource_limits={"memory_limit": 32 << 20}),
        python("while True: pass", resource_limits={"cpu_time_limit": SECOND // 4}),
    )
    assert [each["status"] for each in results] == [
        "Success",
        "Failure",
        "NotExecuted",
        "ResourceLimitExceeded",
        "Timeout",
        "MemoryLimitExceeded",
        "CpuLimitExceeded",
    ]
    assert (results[1]["exit_code"], results[1]["stderr"], results[1]["stdout"]) == (3, "why\n", None)
    assert (results[2]["exit_code"], ".." in results[2]["error"]) == (None, True)


LIMITED = {
    "cpu_time": python("while True: pass", resource_limits={"cpu_time_limit": SECOND // 4}),
    "wall_time": bash("sleep 30", wall_time_limit=SECOND // 2),
    "process": python("import os\nfor _ in range(20): os.fork()", resource_limits={"max_processes": 4}),
    "file_descriptor": python("[open('/dev/null') for _ in range(99)]", resource_limits={"max_file_descriptors": 20}),
    "output": bash("yes", max_output_size=1000),
}


@everywhere
def test_every_limit_ends_the_task_and_raises_its_own_flag(service: Service, base: str) -> None:
    results = run_all(service.url + base, *LIMITED.values())
    for name, result in zip(LIMITED, results, strict=True):
        flags = result["resource_limits_exceeded"]
        assert [flag for flag, raised in flags.items() if raised] == [f"{name}_limit_exceeded"], (name, result)
        assert result["status"] not in ("Success", "NotExecuted")
        assert result["error"]
    assert len(results[list(LIMITED).index("output")]["stdout"]) == 1000


@everywhere
def test_a_limit_of_memory_holds_for_all_processes_together(service: Service, base: str) -> None:
    code = (
        "import os, signal, sys\n"
        "for _ in range(4):\n"
        "    if not os.fork():\n"
        "        x = b'x' * (16 << 20)\n"
        "        signal.pause()\n"
        "sys.exit(os.wait()[1] != 0)\n"
    )
    (result,) = run_all(service.url + base, python(code, resource_limits={"memory_limit": 32 << 20}))
    assert result["status"] == "MemoryLimitExceeded"
    assert result["resource_usage"]["memory_peak_bytes"] <= 32 << 20


@everywhere
def test_usage_is_what_the_task_used(service: Service, base: str) -> None:
    busy = "import time\nend = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
    asleep, computing, filling, crowd, descriptors = run_all(
        service.url + base,
        python("import time; time.sleep(0.5)"),
        python(busy),
        python("x = b'x' * (64 << 20)"),
        bash("sleep 0.3 & sleep 0.3 & wait"),
        bash("for i in {0..99}; do [[ -e /proc/$$/fd/$i ]] && echo $i; done; true"),
    )
    programs = {"asleep": asleep, "computing": computing, "filling": filling, "crowd": crowd}
    usage = {name: each["resource_usage"] for name, each in programs.items()}
    assert usage["asleep"]["wall_time_ns"] >= SECOND // 2 > usage["asleep"]["cpu_time_ns"]
    assert 0.25 * SECOND < usage["computing"]["cpu_time_ns"] < 5 * SECOND
    assert usage["filling"]["memory_peak_bytes"] > 64 << 20
    assert usage["crowd"]["process_count"] == 3
    for each in usage.values():
        assert each["cpu_time_ns"] == each["user_time_ns"] + each["system_time_ns"]
        assert 0 < each["memory_current_bytes"] <= each["memory_peak_bytes"]
    assert descriptors["stdout"].split() == ["0", "1", "2"]
    assert descriptors["resource_usage"]["file_descriptors"] == 3


@everywhere
def test_the_defaults_of_the_document_are_in_force(service: Service, base: str) -> None:
    code = (
        "import resource, os\n"
        "print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])\n"
        "n = 0\n"
        "try:\n"
        "    while n < 50:\n"
        "        os.fork() or os.execvp('sleep', ['sleep', '20'])\n"
        "        n += 1\n"
        "except OSError:\n"
        "    print(n + 1)\n"
    )
    output, counted = run_all(service.url + base, bash("head -c 3000000 /dev/zero | tr '\\0' x"), python(code))
    assert len(output["stdout"]) == 1 << 20
    assert counted["stdout"].split() == ["100", "10"]


@everywhere
def test_a_command_that_is_not_there_is_a_failure_with_127(service: Service, base: str) -> None:
    missing, no_program = run_all(service.url + base, {"command": "no-such-command"}, {"command": "/etc"})
    assert (missing["status"], missing["exit_code"], missing["stderr"]) == ("Failure", 127, None)
    assert missing["error"] == "command not found: no-such-command"
    assert (no_program["status"], no_program["exit_code"]) == ("Failure", 126)


@everywhere
def test_tasks_that_cannot_be_prepared_are_not_executed_and_the_others_run(service: Service, base: str) -> None:
    results = run_all(
        service.url + base,
        {"command": "cat", "args": ["a/b.txt"], "files": {"a/b.txt": "text é"}},
        {"command": "ls", "files": {"a/../../b": ""}},
        {"command": "ls", "files": {"/etc/passwd": ""}},
        {"command": "ls", "files": {"/tmp/x": ""}},
        {"command": "ls", "files": {"": ""}},
        {"command": "ls", "env": {"A=B": "c"}},
        {"command": "ls", "env": {"": "c"}},
        {"command": "ls", "args": ["a\0b"]},
        {"command": "echo", "args": ["last"]},
    )
    assert [each["status"] for each in results] == ["Success", *["NotExecuted"] * 7, "Success"]
    assert (results[0]["stdout"], results[-1]["stdout"]) == ("text é", "last\n")
    assert all(each["error"] for each in results[1:-1])


@everywhere
def test_the_error_table_is_as_printed(service: Service, base: str) -> None:
    url = f"{service.url}{base}/execute"
    empty = httpx.post(url, json={"tasks": [{"command": ""}]})
    assert (empty.status_code, empty.json()) == (
        400,
        {"error": "Validation error", "details": "Invalid command: command cannot be empty"},
    )
    greedy = httpx.post(url, json={"tasks": [{"command": "ls", "resource_limits": {"memory_limit": 1 << 40}}]})
    assert (greedy.status_code, greedy.json()["error"]) == (403, "Access denied")


def test_a_body_too_large_is_413(service: Service) -> None:
    answer = httpx.post(f"{service.url}/faber/execute", content=b" " * ((10 << 20) + 1))
    assert (answer.status_code, answer.json()) == (
        413,
        {"error": "Request too large", "details": "Request body exceeds maximum size limit"},
    )


def test_keys_rates_and_documents_of_a_server_of_this_dialect_alone(tmp_path: Path) -> None:
    (tmp_path / "api_keys.json").write_text(json.dumps(["the-right-key"]))
    echo = {"tasks": [{"command": "sh", "args": ["out hi"]}]}  # as the tier without sandboxes understands it
    with running_service(tmp_path, "--dialect", "faber", tier="fake") as alone, alone.client as client:
        assert client.post("/execute", json=echo).json() == {
            "error": "Authentication required",
            "details": "API key is required for this endpoint",
        }
        wrong = client.post("/execute", json=echo, headers={"Authorization": "Bearer your-api-key-here"})
        assert (wrong.status_code, wrong.json()) == (403, {"error": "Access denied", "details": "Invalid API key"})
        keyed = {"Authorization": "Bearer the-right-key"}
        answers = [client.post("/execute", json=echo, headers=keyed) for _ in range(101)]
        assert [answer.status_code for answer in answers] == [200] * 100 + [429]
        assert [int(answer.headers["x-ratelimit-remaining"]) for answer in answers] == [*range(99, -1, -1), 0]
        assert answers[0].json()["results"][0]["stdout"] == "hi\n"
        assert answers[-1].json() == {
            "error": "Rate limit exceeded",
            "details": "Too many requests, please try again later",
        }
        reset = int(answers[-1].headers["x-ratelimit-reset"])
        assert 0 <= reset - time.time() <= 61
        assert set(client.get("/health").json()) == {"status", "timestamp", "version"}
        assert "/execute" in client.get("/api-docs/openapi.json").json()["paths"]
        assert client.get("/swagger-ui").headers["content-type"].startswith("text/html")
