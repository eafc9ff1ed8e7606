"""What holds in `--reduced`, where there are no namespaces: the same probes, which have their controls elsewhere."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.security.attempts import CLOSED, confined, numbers_of, run_unconfined, source_of
from tests.security.conftest import ENVIRONMENT, SECRET, Canary
from tests.support.service import Service, running_service

SHARE = """
import ctypes, os, select, socket
def try_it(action):
    try: return bool(action())
    except OSError: return False
libc = ctypes.CDLL(None)
def listen():
    global abstract
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind("\\0sandfork-reduced")
    abstract.listen()
    return True
print(
    try_it(listen),
    libc.shmget(0x5F1, 4096, 0o1666) >= 0,
    try_it(lambda: open("shared.txt", "w").write("x")),
    os.getcwd(), os.getpid(), flush=True,
)
select.select([], [], [], 2)
"""
FIND = """
import ctypes, os, socket, sys
def try_it(action):
    try: return action() is None
    except OSError: return False
libc = ctypes.CDLL(None)
print(
    try_it(lambda: socket.socket(socket.AF_UNIX).connect("\\0sandfork-reduced")),
    libc.shmget(0x5F1, 4096, 0) >= 0,
    *(try_it(lambda: open(f"{os.path.dirname(os.getcwd())}/s{n}/shared.txt").close()) for n in range(12)
      if os.getcwd() != f"{os.path.dirname(os.getcwd())}/s{n}"),
    any(try_it(lambda: os.kill(pid, 0)) for pid in range(2, 70_000) if pid != os.getpid()),
)
"""


@pytest.fixture(scope="module")
def reduced(as_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = "[languages]\nenable = ['python', 'bash']\n[pool]\nsize = 2\nsizes = {python-numpy = 0}\n"
    directory = tmp_path_factory.mktemp("reduced")
    with running_service(directory, "--reduced", config=settings, env=ENVIRONMENT) as started:
        yield started


def test_every_reply_and_health_say_reduced(reduced: Service) -> None:
    assert reduced.exec("print(1)")["isolation"] == "reduced"
    with reduced.client as client:
        health: dict[str, Any] = client.get("/v1/health").json()
        stronger = client.post("/v1/exec", json={"code": "1", "isolation": "process"})
    assert health["isolation"] == "reduced"
    assert {"pid namespace", "network namespace", "user namespace"} <= set(health["unenforced_limits"])
    assert stronger.status_code == 501, "who asks for more than there is must not get less"


def test_the_same_calls_and_sockets_are_refused(reduced: Service) -> None:
    named = re.findall(r'(?:call|transfer)\("(\w+)"', source_of("syscalls"))
    results = confined(reduced, "syscalls", numbers_of(tuple(sorted(set(named)))))
    results |= confined(reduced, "sockets")
    assert {name: told for name, told in results.items() if told not in CLOSED | {"absent"}} == {}


def test_files_of_the_host_and_processes_of_others_are_out_of_reach(reduced: Service, canary: Canary) -> None:
    settings = reduced.log.parent / "settings.toml"
    facts = {"canary": str(canary.path), "settings": str(settings), "keys": str(settings), "pid": reduced.process.pid}
    results = confined(reduced, "files", json.dumps(facts))
    assert {name: told for name, told in results.items() if told not in CLOSED} == {}


def test_nothing_of_the_network_can_be_reached(reduced: Service, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind("\0sandfork-outside")
        abstract.listen()
        facts = {
            "port": listener.getsockname()[1], "api": int(reduced.url.rpartition(":")[2]), "lan": "127.0.0.1",
            "abstract": "sandfork-outside", "path": str(tmp_path / "none"),
        }  # fmt: skip
        results = confined(reduced, "network", json.dumps(facts))
    assert {name: told for name, told in results.items() if told not in CLOSED} == {}


def test_no_sandbox_reaches_another_though_they_share_namespaces(reduced: Service, tmp_path: Path) -> None:
    replies: list[dict[str, Any]] = []
    keeper = threading.Thread(target=lambda: replies.append(reduced.exec(SHARE)))
    keeper.start()
    found = {reduced.exec(FIND)["stdout"] for _ in range(6)}
    keeper.join()
    assert replies[0]["stdout"].split()[2] == "True", replies
    assert set(" ".join(found).split()) == {"False"}, found
    control = run_unconfined(tmp_path, ["/usr/bin/python3", "-c", SHARE + FIND], spaces=("--ipc",)).stdout.split()
    assert (control[-1], control[5], control[6]) == (b"True", b"True", b"True"), control


def test_neither_secrets_nor_descriptors_nor_earlier_programs_are_carried_over(reduced: Service) -> None:
    code = (
        "import os\n"
        "print(sorted(os.environ.items()), sorted(int(n) for n in os.listdir('/proc/self/fd')), os.listdir('.'))"
    )
    reduced.exec("open('left.txt', 'w').write('left')")
    for _ in range(6):
        told = reduced.exec(code)["stdout"]
        assert "left.txt" not in told
        assert SECRET not in told
        assert "[0, 1, 2, 3, 63]" in told
