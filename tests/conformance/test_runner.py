"""Runner's document against the service itself, with real sandboxes: every printed call, and what it leaves open."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from sandfork.languages.catalogue import Catalogue
from sandfork.languages.checks import GREETING
from tests.support.service import Service, running_service

BASES = ["", "/runner"]
DURATION = re.compile(r"\d+(\.\d{1,2})?ms")

everywhere = pytest.mark.parametrize("base", BASES, ids=["root", "prefix"])


class RunnerClient:
    """The client that the document prints."""

    def __init__(self, url: str = "http://localhost:8080") -> None:
        self.url = url

    def execute(self, language: str, code: str, timeout: int = 30) -> Any:
        response = httpx.post(
            f"{self.url}/api/v1/execute",
            json={"language": language, "code": code, "timeout": timeout},
            timeout=60,
        )
        return response.json()


@everywhere
def test_the_printed_client_works(service: Service, base: str) -> None:
    client = RunnerClient(service.url + base)
    assert client.execute("python", "print(2 ** 10)")["stdout"] == "1024\n"
    assert client.execute("nodejs", "console.log(2 ** 10)")["stdout"] == "1024\n"


@everywhere
def test_the_first_example_has_the_printed_reply(service: Service, base: str) -> None:
    reply = RunnerClient(service.url + base).execute("python", 'print("Hello World!")', 30)
    times = reply.pop("load_time"), reply.pop("exec_time")
    assert reply == {"stdout": "Hello World!\n", "stderr": "", "exit_code": 0}
    assert all(DURATION.fullmatch(time) for time in times), times


@everywhere
@pytest.mark.parametrize(
    ("language", "code", "stdout"),
    [
        ("python", "print(sum(range(100)))", "4950\n"),
        (
            "nodejs",
            "console.log(Array.from({length:10},(_,i)=>i*i))",
            "[\n   0,  1,  4,  9, 16,\n  25, 36, 49, 64, 81\n]\n",
        ),
    ],
)
def test_the_language_examples_print_what_they_should(
    service: Service, base: str, language: str, code: str, stdout: str
) -> None:
    reply = RunnerClient(service.url + base).execute(language, code)
    assert (reply["stdout"], reply["stderr"], reply["exit_code"]) == (stdout, "", 0)


@everywhere
def test_a_timeout_is_124_keeps_the_output_and_ends_stderr(service: Service, base: str) -> None:
    code = "import sys\nprint('so far', flush=True)\nsys.stderr.write('half')\nsys.stderr.flush()\nwhile True: pass"
    reply = RunnerClient(service.url + base).execute("python", code, 1)
    assert (reply["stdout"], reply["stderr"], reply["exit_code"]) == ("so far\n", "half\nExecution timed out", 124)


@everywhere
def test_a_program_that_fails_has_its_own_status_and_words(service: Service, base: str) -> None:
    client = RunnerClient(service.url + base)
    assert client.execute("python", "raise SystemExit(7)")["exit_code"] == 7
    raised = client.execute("python", "1 / 0")
    assert (raised["exit_code"], raised["stderr"].splitlines()[-1]) == (1, "ZeroDivisionError: division by zero")
    assert client.execute("python", "import os; os.kill(os.getpid(), 11)")["exit_code"] == 139


@everywhere
def test_what_is_listed_as_installed_runs_and_is_counted(service: Service, base: str) -> None:
    listed = httpx.get(f"{service.url}{base}/api/v1/languages").json()
    installed = [each for each in listed["languages"] if each["installed"]]
    assert listed["count"] == len(installed)
    assert {("python", ".py"), ("nodejs", ".js")} <= {(each["name"], each["extension"]) for each in installed}
    catalogue = Catalogue.load()
    for each in installed:
        language = catalogue.find(each["name"])
        assert language is not None
        hello = next(check for check in language.checks if check.name == "hello")
        if hello.stdin is not None:
            continue  # there is none in this API
        for name in (each["name"], *each["aliases"]):
            reply = RunnerClient(service.url + base).execute(name, hello.code)
            assert (reply.get("exit_code"), reply.get("stdout", "").strip()) == (0, GREETING), (name, reply)


@everywhere
def test_one_language_tells_the_version_that_its_programs_see(service: Service, base: str) -> None:
    details = httpx.get(f"{service.url}{base}/api/v1/languages/python").json()
    seen = RunnerClient(service.url + base).execute("python", "import platform; print(platform.python_version())")
    assert details["version"] == seen["stdout"].strip()
    node = httpx.get(f"{service.url}{base}/api/v1/languages/nodejs").json()
    seen = RunnerClient(service.url + base).execute("nodejs", "console.log(process.versions.node)")
    assert node["version"] == seen["stdout"].strip()


@everywhere
def test_errors_are_as_printed(service: Service, base: str) -> None:
    url = f"{service.url}{base}/api/v1"
    for answer, status in (
        (httpx.get(f"{url}/languages/ruby2"), 404),
        (httpx.post(f"{url}/execute", json={"language": "ruby2", "code": ""}), 400),
        (httpx.post(f"{url}/rootfs", json={"language": "ruby2"}), 400),
    ):
        assert (answer.status_code, answer.json()) == (status, {"error": "language not found: ruby2"})


@everywhere
def test_what_this_server_cannot_reach_or_may_not_make_is_refused_and_says_why(service: Service, base: str) -> None:
    url = f"{service.url}{base}/api/v1"
    for kind in ("rootfs", "snapshots"):
        assert isinstance(httpx.get(f"{url}/{kind}").json()[kind], list)
        elsewhere = httpx.get(f"{url}/{kind}", params={"remote": "true"})
        assert (elsewhere.status_code, set(elsewhere.json())) == (501, {"error"})
        assert "remote.bucket" in elsewhere.json()["error"]
    refused = httpx.post(f"{url}/rootfs", json={"language": "python", "size_mb": 1 << 20})
    assert (refused.status_code, set(refused.json())) == (403, {"error"})
    assert "size_mb" in refused.json()["error"]


def test_a_server_of_this_dialect_alone_answers_at_root_on_its_own(as_root: None, tmp_path: Path) -> None:
    with running_service(tmp_path, "--dialect", "runner") as alone, alone.client as client:
        health = client.get("/health").json()
        assert (set(health), health["status"]) == ({"status", "version"}, "healthy")
        assert RunnerClient(alone.url).execute("python", "print(1 + 1)")["stdout"] == "2\n"
        assert client.get("/api/v1/languages").json()["count"] >= 2
        assert client.post("/v1/exec", json={"code": "1"}).status_code == 404
