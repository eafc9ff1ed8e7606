"""InstaVM's own client, as it is on PyPI: scripts over its SDK and its command line, in an environment of its own."""

from __future__ import annotations

import json
import os
import select
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.service import STUCK_S

PRELUDE = """
import asyncio, base64, json
from pathlib import Path
import websockets
from instavm import *

def client(key=KEY, **options):
    return InstaVM(key, base_url=URL, **options)

def error(call, *arguments, **options):
    try:
        return ["none", str(call(*arguments, **options))]
    except Exception as raised:
        return [type(raised).__name__, str(raised)]
"""


def clients_python() -> str:
    """Return the interpreter that has the clients; skip, by name, where there is none."""
    python = os.environ.get("TEST_CLIENTS_PYTHON")
    if python is None:
        pytest.skip("needs the clients of others, which ./dev test installs")
    return python


@dataclass
class InstaVMClient:
    """The client of one key: `url` is its base address, `home` where it runs and keeps its settings."""

    url: str
    key: str
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        """What the client finds in its environment."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "INSTAVM_API_KEY": self.key,
            "INSTAVM_BASE_URL": self.url,
            "TERM": "dumb",
        }

    def run(self, script: str) -> Any:
        """Run a script over the SDK and return what it leaves in `answer`."""
        lines = (f"URL, KEY = {self.url!r}, {self.key!r}", PRELUDE, script, "print('\\n' + json.dumps(answer))")
        done = self._start("-c", "\n".join(lines))
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def cli(self, *words: str) -> subprocess.CompletedProcess[str]:
        """Run the command line."""
        return self._start("-m", "instavm", *words)

    def cli_json(self, *words: str) -> Any:
        """Run the command line, which must succeed, and return the JSON it prints."""
        done = self.cli(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def _start(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [clients_python(), *words],
            cwd=self.home,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=STUCK_S,
            check=False,
        )

    def at_terminal(self, words: Sequence[str], typed: bytes) -> tuple[int, bytes]:
        """Run the command line at a terminal, type once it shows something; return its status and what it showed."""
        ours, theirs = os.openpty()
        process = subprocess.Popen(
            [clients_python(), "-m", "instavm", *words],
            cwd=self.home,
            env=self.environment,
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
        )
        os.close(theirs)
        try:
            shown = _read(ours)
            os.write(ours, typed)
            while more := _read(ours):
                shown += more
            return process.wait(STUCK_S), shown
        finally:
            process.kill()
            process.wait()
            os.close(ours)


def _read(terminal: int) -> bytes:
    """Return what a terminal shows next; nothing when its other end is closed."""
    ready, _, _ = select.select([terminal], [], [], STUCK_S)
    assert ready, "nothing more was shown"
    try:
        return os.read(terminal, 65536)
    except OSError:
        return b""
