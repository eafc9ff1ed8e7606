"""The start-up self-test: two throw-away sandboxes try to break every primitive (guest/self_test.py).

The first makes all the attempts; the second takes more memory than it may, which ends it.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path

from sandfork.errors import SandforkError, TierUnavailable
from sandfork.model import Display, Limits, Outcome, Step, Stream
from sandfork.tiers.base import Sandbox, StepEnd

_NAMESPACES = ("pid", "mnt", "net", "ipc", "uts", "cgroup", "user")
_LIMITS = Limits(wall_s=30, cpu_s=20, memory_bytes=64 << 20, pids=12, disk_bytes=4 << 20, open_files=128)
_EAT = "b = bytearray()\nwhile len(b) < 200 << 20: b += b'x' * (1 << 20)\n"
_INTERPRETER = ("/usr/bin/python3", "-I", "-S")
_TIMEOUT_S = 30.0

Fork = Callable[[], Awaitable[Sandbox]]


class _Output:
    """Keeps what a self-test prints."""

    def __init__(self) -> None:
        self.text = b""

    def output(self, stream: Stream, data: bytes) -> bool:
        """Take a chunk."""
        self.text += data
        return len(self.text) < 1 << 16

    def display(self, shown: Display) -> None:
        """Take a rich value: there is none."""


async def self_test(fork: Fork, program: Path, *, cgroups: bool, reduced: bool) -> dict[str, str]:
    """Return primitive to "" (it held) or what was wrong. *Raises* TierUnavailable when no sandbox could be tried.

    Without `cgroups` a limit is tried on one process, which is all that is promised then; `reduced` leaves out what
    namespaces would do, and tries instead what keeps programs from the files and processes that they then see.
    """
    results = await _attempts(fork, program, reduced)
    results["memory limit"] = await _memory(fork, cgroups)
    return results


async def _run(fork: Fork, argv: tuple[str, ...], code: bytes) -> tuple[StepEnd, bytes]:
    sandbox = await fork()
    out = _Output()
    try:
        async with asyncio.timeout(_TIMEOUT_S):
            end = await sandbox.exec(Step(argv, "self_test.py", code), _LIMITS, out)
    finally:
        await sandbox.close()
    return end, out.text


async def _attempts(fork: Fork, program: Path, reduced: bool) -> dict[str, str]:
    code = await asyncio.to_thread(program.read_bytes)
    with tempfile.NamedTemporaryFile() as canary, socket.create_server(("127.0.0.1", 0)) as listener:
        os.chmod(canary.name, 0o644)
        facts = {
            "namespaces": {name: os.readlink(f"/proc/self/ns/{name}") for name in _NAMESPACES},
            "canary": canary.name,
            "server": os.getpid(),
            "reduced": reduced,
            "port": listener.getsockname()[1],
            "pids": _LIMITS.pids,
            "disk_bytes": _LIMITS.disk_bytes,
        }
        argv = (*_INTERPRETER, "/sandbox/self_test.py", json.dumps(facts))
        text = b""
        try:
            end, text = await _run(fork, argv, code)
            results = json.loads(text)
        except (SandforkError, ValueError, TimeoutError) as error:
            shown = text.decode(errors="replace")[-500:] if isinstance(error, ValueError) else str(error)
            raise TierUnavailable(f"the self-test could not run in a sandbox: {shown}") from error
    if end.outcome is not Outcome.EXITED and end.outcome is not Outcome.PIDS_LIMIT:
        raise TierUnavailable(f"the self-test did not end by itself: {end.outcome}")
    return {str(name): str(problem) for name, problem in results.items()}


async def _memory(fork: Fork, cgroups: bool) -> str:
    end, _ = await _run(fork, (*_INTERPRETER, "/sandbox/self_test.py"), _EAT.encode())
    if not cgroups and end.exit_code == 1:
        return ""  # MemoryError: the process was refused more
    return "" if end.outcome is Outcome.OUT_OF_MEMORY else f"200 MiB were allowed where 64 are ({end.outcome})"


def broken(results: dict[str, str]) -> dict[str, str]:
    """Return only what did not hold."""
    return {name: problem for name, problem in results.items() if problem}
