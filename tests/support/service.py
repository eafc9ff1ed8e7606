"""Start the service as a user does, in a process of its own, and talk to it over HTTP."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

import sandfork

#: A service that is not up, or not gone, by then is stuck: the test fails instead of hanging.
STUCK_S = 90.0


def command(*words: str) -> list[str]:
    """Return the command line of `sandfork` as it is installed: the source under test, and nothing from PYTHON*."""
    source = Path(sandfork.__file__).parents[1]
    code = f"import sys; sys.path.insert(0, {str(source)!r}); from sandfork.cli import main; main()"
    return [sys.executable, "-I", "-c", code, *words]


def run_command(
    *words: str, cwd: Path, stdin: bytes = b"", env: dict[str, str] | None = None, prefix: Sequence[str] = ()
) -> subprocess.CompletedProcess[bytes]:
    """Run `sandfork` to its end; `prefix` is a command that runs it. The machine's own images are left alone."""
    own = {"SANDFORK_IMAGES_DIRECTORY": str(cwd / "images")}
    environ = {"PATH": os.environ["PATH"], "HOME": str(cwd), **own, **(env or {})}
    return subprocess.run(
        [*prefix, *command(*words)],
        cwd=cwd,
        input=stdin,
        capture_output=True,
        env=environ,
        timeout=STUCK_S,
        check=False,
    )


@dataclass
class Service:
    """A running service; `log` is what it wrote to stderr."""

    process: subprocess.Popen[bytes]
    url: str
    banner: str
    log: Path

    @property
    def client(self) -> httpx.Client:
        """A client of this service; the caller closes it."""
        return httpx.Client(base_url=self.url, timeout=STUCK_S)

    def exec(self, code: str, language: str = "python", **fields: Any) -> dict[str, Any]:
        """Run one program and return the reply, which must be a result."""
        with self.client as client:
            answer = client.post("/v1/exec", json={"code": code, "language": language, **fields})
        assert answer.status_code == 200, answer.text
        reply: dict[str, Any] = answer.json()
        return reply

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal, wait for the end and return the exit status."""
        self.process.send_signal(number)
        return self.process.wait(STUCK_S)


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        return int(sock.getsockname()[1])


@contextmanager
def running_service(
    directory: Path,
    *options: str,
    config: str = "",
    tier: str = "process",
    env: dict[str, str] | None = None,
    prefix: Sequence[str] = (),
) -> Iterator[Service]:
    """Start a service with `config` as its settings file; end it at the end of the block, dead or alive.

    `prefix` is a command that runs the service, as env(1) would. Its images are in a directory of their own, which it
    can enter, unless `env` names one; the machine's own are left alone.
    """
    with tempfile.TemporaryDirectory(prefix="sandfork-test-", dir="/var/tmp") as images:
        Path(images).chmod(0o755)
        own = {"SANDFORK_IMAGES_DIRECTORY": images}
        with _running(directory, options, config, tier, {**own, **(env or {})}, prefix) as service:
            yield service


@contextmanager
def _running(
    directory: Path, options: Sequence[str], config: str, tier: str, env: dict[str, str], prefix: Sequence[str]
) -> Iterator[Service]:
    port, log = free_port(), directory / "service.log"
    settings = directory / "settings.toml"
    settings.write_text(config)
    words = ("serve", "--config", str(settings), "--port", str(port), "--tier", tier, *options)
    # What languages tell of themselves would be running beside the tests.
    quiet = {"SANDFORK_LANGUAGES_VERSIONS_AT_START": "false"}
    environ = {"PATH": os.environ["PATH"], "HOME": str(directory), **quiet, **env}
    with log.open("wb") as errors:
        process = subprocess.Popen(
            [*prefix, *command(*words)],
            cwd=directory,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
    watchdog = threading.Timer(STUCK_S, process.kill)
    watchdog.start()
    try:
        assert process.stdout is not None
        banner = b""
        while b"curl" not in banner:
            line = process.stdout.readline()
            assert line, f"the service did not start:\n{log.read_text()}"
            banner += line
        watchdog.cancel()
        yield Service(process, f"http://127.0.0.1:{port}", banner.decode(), log)
    finally:
        watchdog.cancel()
        if process.poll() is None:
            process.terminate()
            try:
                process.wait(STUCK_S)
            except subprocess.TimeoutExpired:
                process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def until_made(client: httpx.Client, kind: str, name: str) -> Any:
    """Return Runner's entry of an image ("rootfs") or of one of the "snapshots", once it is not being made any more."""
    while True:
        entry = client.get(f"/api/v1/{kind}/{name}").json()
        if entry["status"] != "building":
            return entry
