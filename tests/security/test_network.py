"""A sandbox has a loopback of its own and nothing else."""

from __future__ import annotations

import json
import re
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.security.attempts import DENIED, Results, confined, judge, run_unconfined, source_of, unconfined
from tests.support.service import Service

NAMES = tuple(re.findall(r'^    "(\w+)": ', source_of("network"), re.MULTILINE))
#: What the kernel says where there is no network.
UNREACHABLE = DENIED | {"ENETUNREACH", "ECONNREFUSED", "EADDRNOTAVAIL", "EHOSTUNREACH"}

SHARE = """
import ctypes, os, socket, sys
listener = socket.create_server(("127.0.0.1", 34567))
abstract = socket.socket(socket.AF_UNIX); abstract.bind("\\0sandfork-shared"); abstract.listen()
os.makedirs("/tmp/shared", exist_ok=True)
open("/dev/shm/sandfork-shared", "w").write("x")
libc = ctypes.CDLL(None, use_errno=True)
segment = libc.shmget(0x5F0, 4096, 0o1666)
shape = (ctypes.c_long * 8)(0, 4, 64)
queue = libc.mq_open(b"/sandfork-shared", os.O_CREAT | os.O_RDWR, 0o666, shape)
print("ready" if segment >= 0 else "failed", flush=True)
"""
FIND = """
import ctypes, os, socket
libc = ctypes.CDLL(None, use_errno=True)
def connects(address, family):
    try:
        with socket.socket(family) as sock:
            sock.connect(address)
        return True
    except OSError:
        return False
print(
    connects(("127.0.0.1", 34567), socket.AF_INET),
    connects("\\0sandfork-shared", socket.AF_UNIX),
    os.path.exists("/dev/shm/sandfork-shared"),
    libc.shmget(0x5F0, 4096, 0) >= 0,
    libc.mq_open(b"/sandfork-shared", os.O_RDWR) >= 0,
)
"""
CLEAN_UP = """
libc.shmctl(libc.shmget(0x5F0, 4096, 0), 0, None)
libc.mq_unlink(b"/sandfork-shared")
os.unlink("/dev/shm/sandfork-shared")
"""
WAIT = "import select; select.select([], [], [], 3)\n"


@pytest.fixture(scope="module")
def facts(service: Service, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Listeners on the host, waiting to be reached."""
    path = tmp_path_factory.mktemp("sockets") / "listener"
    abstract = "sandfork-listener"
    with (
        socket.create_server(("127.0.0.1", 0)) as loopback,
        socket.socket(socket.AF_UNIX) as named,
        socket.socket(socket.AF_UNIX) as unnamed,
    ):
        named.bind(str(path))
        unnamed.bind("\0" + abstract)
        named.listen()
        unnamed.listen()
        yield {
            "port": loopback.getsockname()[1],
            "api": int(service.url.rpartition(":")[2]),
            "lan": "198.51.100.7",
            "abstract": abstract,
            "path": str(path),
        }
        for listener in (loopback, named, unnamed):
            listener.setblocking(False)
            with pytest.raises(BlockingIOError):
                listener.accept()


@pytest.fixture(scope="module")
def inside(service: Service, facts: dict[str, Any]) -> Results:
    return confined(service, "network", json.dumps(facts))


@pytest.fixture(scope="module")
def outside(facts: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Results:
    scratch = tmp_path_factory.mktemp("network")
    told = {**facts, "prepare": True, "path": str(scratch / "listener")}
    return unconfined(scratch, "network", json.dumps(told))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_beyond_the_own_loopback_can_be_reached(name: str, inside: Results, outside: Results) -> None:
    judge(name, inside[name], outside[name], UNREACHABLE)


def test_there_is_no_resolver(service: Service) -> None:
    code = (
        "import socket\n"
        "try: socket.getaddrinfo('example.com', 80)\n"
        "except socket.gaierror as error: print(error.errno < 0)\n"
        "print(repr(open('/etc/resolv.conf').read()), socket.getaddrinfo('localhost', 80)[0][4][0])"
    )
    assert service.exec(code)["stdout"].split() == ["True", "''", "127.0.0.1"]


def test_the_own_loopback_works(service: Service) -> None:
    code = (
        "import socket\n"
        "server = socket.create_server(('127.0.0.1', 0))\n"
        "client = socket.create_connection(server.getsockname())\n"
        "peer, _ = server.accept(); client.sendall(b'hello'); print(peer.recv(5))"
    )
    assert service.exec(code)["stdout"] == "b'hello'\n"


def test_nothing_of_one_sandbox_can_be_reached_from_another(service: Service, tmp_path: Path) -> None:
    """Ports, abstract sockets, /dev/shm, System V memory, POSIX queues: while the one that has them still runs."""
    replies: list[dict[str, Any]] = []
    keeper = threading.Thread(target=lambda: replies.append(service.exec(SHARE + WAIT, timeout_seconds=20)))
    keeper.start()
    found = [service.exec(FIND)["stdout"] for _ in range(12)]
    keeper.join()
    assert replies[0]["stdout"] == "ready\n", replies
    assert set(found) == {"False False False False False\n"}
    control = run_unconfined(tmp_path, ["/usr/bin/python3", "-c", SHARE + FIND + CLEAN_UP], spaces=("--ipc",))
    assert control.stdout.decode().splitlines()[1] == "True True True True True", control


def test_two_sandboxes_listen_on_one_port_without_meeting(service: Service, tmp_path: Path) -> None:
    code = (
        "import select, socket\n"
        "server = socket.create_server(('0.0.0.0', 8080))\n"
        "print('bound', flush=True); select.select([server], [], [], 0.5)"
    )
    with service.client as client:
        replies = client.post("/v1/exec/batch", json={"executions": [{"code": code}] * 3}).json()["results"]
    assert [reply["stdout"] for reply in replies] == ["bound\n"] * 3
    twice = "import socket; first = socket.create_server(('0.0.0.0', 8080)); socket.create_server(('0.0.0.0', 8080))"
    assert b"Address already in use" in run_unconfined(tmp_path, ["/usr/bin/python3", "-c", twice]).stderr


LEAVE_TRACES = """
import socket
server = socket.create_server(("127.0.0.1", 0))
client = socket.create_connection(server.getsockname()); client.send(b"x" * 1000)
raw = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM); raw.sendto(b"x", ("::1", 9))
"""
LOOK_FOR_TRACES = """
import socket
packets = next(line for line in open("/proc/net/dev") if "lo:" in line).split()[2]
labels = open("/proc/net/ip6_flowlabel").read().count("\\n")
used = open("/proc/net/sockstat").readline().split()[2]
counters = open("/proc/net/snmp6").read().split()
print(packets, labels, used, sum(int(n) for n in counters[1::2]))
"""


def test_a_network_namespace_that_was_used_is_not_given_to_the_next(service: Service, tmp_path: Path) -> None:
    fresh = service.exec(LOOK_FOR_TRACES)["stdout"]
    for _ in range(20):
        service.exec(LEAVE_TRACES)
    assert {service.exec(LOOK_FOR_TRACES)["stdout"] for _ in range(20)} == {fresh}
    left = service.exec(LEAVE_TRACES + LOOK_FOR_TRACES)["stdout"]
    assert left != fresh, "the control: what was left is seen by whoever shares the namespace"
