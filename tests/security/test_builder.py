"""A server that was taken over, against the process that keeps root for it: whatever can be sent over their socket."""

from __future__ import annotations

import array
import asyncio
import json
import os
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from sandfork.config import Config
from sandfork.config.schema import Images
from sandfork.serve_builder import Builder, start_builder
from tests.support.remains import opened_by
from tests.support.service import STUCK_S

MOST = 3
HONEST = {"do": "snapshot", "name": "warm", "language": "python", "mem_mb": 64, "vcpus": 1, "toolchain": "Python 3"}


@dataclass
class TakenOver:
    """The server's end of the socket, in wrong hands."""

    end: socket.socket
    place: Path
    builder: Builder

    def send(self, raw: bytes) -> None:
        """Send bytes."""
        self.end.send(raw)

    def ask(self, **order: Any) -> dict[str, Any]:
        """Send an order and return what comes of it."""
        self.send(json.dumps({"id": 1, **order}).encode())
        return self.answer()

    def answer(self) -> dict[str, Any]:
        """Return the next report."""
        report: dict[str, Any] = msgspec.json.decode(self.end.recv(65536))
        return report

    def files(self) -> dict[str, bytes]:
        """Return every file that there is."""
        return {str(path): path.read_bytes() for path in self.place.rglob("*") if path.is_file()}


@pytest.fixture
def taken(as_root: None) -> Iterator[TakenOver]:
    """A builder as the service starts it, and a file above its directory."""
    with tempfile.TemporaryDirectory() as place:
        (Path(place) / "above.json").write_text("{}")
        config = Config(images=Images(max_snapshots=MOST))
        builder = start_builder(config, Path(place) / "images")
        with socket.socket(fileno=os.dup(builder._socket.fileno())) as end:
            end.settimeout(STUCK_S)
            yield TakenOver(end, Path(place), builder)
            end.shutdown(socket.SHUT_RDWR)
        assert builder._process.wait(STUCK_S) == 0, "it does not end with its socket"
        builder._socket.close()


ORDERS: dict[str, dict[str, Any]] = {
    "a path": {"name": "../above"},
    "an absolute path": {"name": "/etc/cron.d/x"},
    "a zero byte": {"name": "a\0b"},
    "a name that is too long": {"name": "a" * 3000},
    "a language of its own": {"language": "../../tmp/evil"},
    "no language": {"language": ""},
    "memory below the least": {"mem_mb": 0},
    "memory without end": {"mem_mb": 1 << 62},
    "processors without end": {"vcpus": 1 << 40},
    "a text that is no line": {"toolchain": "one\nanother"},
    "orders to a terminal": {"toolchain": "\x1b[2J"},
    "a text without end": {"toolchain": "x" * 3000},
    "an image": {"do": "build"},
    "removing a path": {"do": "remove", "name": "../../above"},
    "removing an image": {"do": "remove", "kind": "rootfs", "name": "warm"},
    "removing what is not there": {"do": "remove"},
}


@pytest.mark.parametrize("name", ORDERS)
def test_an_order_that_is_none_changes_nothing(name: str, taken: TakenOver) -> None:
    before = taken.files()
    report = taken.ask(**{**HONEST, **ORDERS[name]})
    assert report.get("error"), report
    assert taken.files() == before
    assert taken.ask(**HONEST) == {"id": 1, "done": True}, "the control"
    assert set(taken.files()) - set(before) == {str(taken.place / "images/snapshots/warm.json")}


GARBAGE: dict[str, bytes] = {
    "no JSON": b"\xff\x00\xff",
    "an empty document": b"{}",
    "a field of its own": json.dumps({"id": 1, **HONEST, "path": "/etc/shadow"}).encode(),
    "another order": json.dumps({"id": 1, **HONEST, "do": "exec"}).encode(),
    "another type": json.dumps({"id": 1, **HONEST, "name": ["warm"]}).encode(),
    "half a character": b'{"id": 1, "do": "remove", "name": "\\ud800"}',
    "nesting": b"[" * 4000,
    "more than a message": json.dumps({"id": 1, **HONEST, "name": "a" * 60_000}).encode(),
    "a number without end": b'{"id": ' + b"9" * 3000 + b"}",
}


@pytest.mark.parametrize("name", GARBAGE)
def test_garbage_is_answered_with_nothing_and_ends_nothing(name: str, taken: TakenOver) -> None:
    before = taken.files()
    taken.send(GARBAGE[name])
    report = taken.ask(**HONEST)
    if report != {"id": 1, "done": True}:  # the garbage was an order after all, and an error
        assert report.get("error"), report
        report = taken.answer()
    assert report == {"id": 1, "done": True}
    assert set(taken.files()) - set(before) == {str(taken.place / "images/snapshots/warm.json")}


def test_it_takes_no_descriptors(taken: TakenOver) -> None:
    passed = array.array("i", [taken.end.fileno()] * 8)
    for _ in range(300):
        order = json.dumps({"id": 1, **HONEST}).encode()
        taken.end.sendmsg([order], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, passed)])
        assert taken.answer() == {"id": 1, "done": True}, "its descriptors ran out"


def test_it_keeps_no_more_snapshots_than_its_settings_say(taken: TakenOver) -> None:
    reports = [taken.ask(**{**HONEST, "name": f"warm{n}"}) for n in range(MOST + 2)]
    assert [report.get("code", "") for report in reports] == ["", "", "", "forbidden", "forbidden"]
    assert taken.ask(**{**HONEST, "name": "warm0"}) == {"id": 1, "done": True}, "one that is there is made again"
    assert taken.ask(do="remove", name="warm1") == {"id": 1, "done": True}
    assert taken.ask(**{**HONEST, "name": "warm9"}) == {"id": 1, "done": True}


def test_it_can_be_neither_traced_nor_read_by_the_servers_user(taken: TakenOver) -> None:
    """And it has nothing open but its socket and the log."""
    pid = taken.builder._process.pid
    own = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and parent_of(entry) == pid]
    for each in own or [pid]:
        status = Path(f"/proc/{each}/status").read_text()
        assert "Uid:\t0\t0\t0\t0" in status
        assert (Path(f"/proc/{each}/mem").stat().st_uid, Path(f"/proc/{each}/environ").stat().st_uid) == (0, 0)
        assert len({path for path in opened_by(each) if path.startswith("socket:")}) == 1
        assert b"SANDFORK" not in Path(f"/proc/{each}/environ").read_bytes()


def parent_of(entry: Path) -> int:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except (FileNotFoundError, ProcessLookupError):
        return 0


def test_a_report_that_is_none_fails_what_waits_and_not_the_server() -> None:
    """The other way round: the server takes no harm of what it cannot read."""

    process = subprocess.Popen(["true"])

    async def run() -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        builder = Builder(process, ours)
        builder.attach(asyncio.get_running_loop())
        asked = asyncio.create_task(builder.snapshot("warm", "python", 64, 1, ""))
        await asyncio.sleep(0)
        theirs.send(b'{"id": 1, "error": "cut off he')
        with pytest.raises(Exception, match="made no sense"):
            async with asyncio.timeout(STUCK_S):
                await asked
        theirs.close()
        await builder.close()

    asyncio.run(run())
