"""The service under measurement: started by this run with a configuration of its own, or already running."""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sandfork.bench import census
from sandfork.bench.wire import Address, Client, ConnectionLost, ProtocolError, request_bytes

READY_S = 120.0
STOP_S = 30.0
GONE_S = 5.0
POLL_S = 0.02
SETTLED_S = 0.5


class ServiceFailed(Exception):
    """The service did not start, did not become ready or did not stop."""


@dataclass(frozen=True, slots=True)
class Variant:
    """A configuration to measure; what it does not name is the service's default.

    `parked` Python sandboxes wait, and none of the templates in `unused`; None leaves the pools as they come.
    """

    parked: int | None = None
    own_network_namespace: bool = True
    unused: tuple[str, ...] = ()

    def __str__(self) -> str:
        pool = "default pools" if self.parked is None else f"{self.parked} parked"
        return pool if self.own_network_namespace else f"{pool}, shared net namespace"


@dataclass(frozen=True, slots=True)
class Left:
    """What a service left on the machine after it ended."""

    processes: int
    cgroups: int
    mounts: int
    network_namespaces: int


def configuration(variant: Variant) -> str:
    """Return a variant as the service's TOML. It runs where no key file is, so that no rate limit applies."""
    lines = ["[process]", f'network_namespace = "{"own" if variant.own_network_namespace else "shared"}"']
    if variant.parked is not None:
        lines += ["[pool.sizes]", f"python = {variant.parked}", *(f'"{name}" = 0' for name in variant.unused)]
    return "\n".join(lines) + "\n"


def own_command() -> tuple[str, ...]:
    """Return the command line that starts `sandfork` as this process was started: same interpreter, same source."""
    source = str(Path(__file__).resolve().parents[2])
    code = f"import sys; sys.path.insert(0, {source!r}); from sandfork.cli import main; main()"
    return (sys.executable, "-I", "-c", code, "serve")


def free_port() -> int:
    """Return a loopback port that was free a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@dataclass(slots=True)
class Service:
    """A service that answers at `address`; `pid` is None for one this run did not start."""

    address: Address
    pid: int | None = None

    def health(self) -> Mapping[str, object]:
        """Return the health document. *Raises* ServiceFailed when there is none, OSError when nothing listens."""
        with Client(self.address) as client:
            answer, _ = client.exchange(request_bytes("GET", "/v1/health"))
        document = json.loads(answer.body)
        if answer.status != 200 or not isinstance(document, dict):
            raise ServiceFailed(f"health answered {answer.status}: {answer.body[:200]!r}")
        return document

    def templates(self) -> tuple[str, ...]:
        """Return the names of the service's templates."""
        templates = self.health().get("templates")
        return tuple(templates) if isinstance(templates, dict) else ()

    def parked(self, template: str = "python") -> int:
        """Return how many sandboxes of a template wait, or -1 where health does not say."""
        templates = self.health().get("templates")
        entry = templates.get(template) if isinstance(templates, dict) else None
        count = entry.get("parked") if isinstance(entry, dict) else None
        return count if isinstance(count, int) else -1

    def wait_parked(self, count: int, timeout_s: float = READY_S) -> None:
        """Return once `count` sandboxes wait; at once where health does not say. *Raises* ServiceFailed."""
        wait_until(lambda: not 0 <= self.parked() < count, timeout_s, f"{count} parked")

    def wait_settled(self) -> None:
        """Return once the pools have not changed for a while. *Raises* ServiceFailed when they never rest."""
        until, since, before = time.monotonic() + READY_S, time.monotonic(), self._all_parked()
        while time.monotonic() - since < SETTLED_S:
            time.sleep(POLL_S)
            now = self._all_parked()
            if now != before:
                since, before = time.monotonic(), now
            if time.monotonic() > until:
                raise ServiceFailed(f"its pools did not come to rest within {READY_S:g} s")

    def _all_parked(self) -> dict[str, int]:
        templates = self.health().get("templates")
        entries = templates.items() if isinstance(templates, dict) else ()
        return {name: entry.get("parked", -1) for name, entry in entries}

    def tree(self) -> list[census.Process]:
        """Return the service's processes, the server first; none where this run did not start it."""
        return [] if self.pid is None else census.descendants(self.pid, census.processes())


@dataclass(slots=True)
class StartedService(Service):
    """A service started by this run. A context manager: leaving it kills what `stop` has not ended."""

    process: subprocess.Popen[bytes] | None = None
    log: Path = field(default_factory=Path)
    before: census.Belongings = field(default_factory=census.belongings)
    gone_s: float = GONE_S

    def stop(self) -> Left:
        """End the service with SIGTERM and look what it left. *Raises* ServiceFailed when it does not end.

        Processes, cgroups and network namespaces are those of the service's tree. Mounts are the whole machine's,
        new since the service started: what another program mounts meanwhile counts too.
        """
        assert self.process is not None
        tree, during = self.tree(), census.belongings()
        made = census.Belongings(
            census.cgroups_of(tree, during.cgroups - self.before.cgroups),
            during.mounts - self.before.mounts,
            census.network_namespaces_of(tree) - self.before.network_namespaces,
        )
        self.process.send_signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_S)
        except subprocess.TimeoutExpired as error:
            raise ServiceFailed(f"did not end within {STOP_S:g} s of SIGTERM, see {self.log}") from error
        return self._left({(process.pid, process.started) for process in tree}, made)

    def _left(self, known: set[tuple[int, int]], made: census.Belongings) -> Left:
        until = time.monotonic() + self.gone_s
        while True:
            alive = known & {(process.pid, process.started) for process in census.processes()}
            here = census.belongings()
            left = Left(
                len(alive),
                len(here.cgroups & made.cgroups),
                len(here.mounts & made.mounts),
                len(here.network_namespaces & made.network_namespaces),
            )
            if left == Left(0, 0, 0, 0) or time.monotonic() > until:
                return left
            time.sleep(POLL_S)

    def __enter__(self) -> StartedService:
        return self

    def __exit__(self, *_: object) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def start(command: tuple[str, ...], variant: Variant, directory: Path) -> StartedService:
    """Start a service and return it once it is ready. *Raises* ServiceFailed."""
    port = free_port()
    config, log = directory / f"{port}.toml", directory / f"{port}.log"
    config.write_text(configuration(variant))
    before = census.belongings()
    with log.open("wb") as out:
        argv = (*command, "--port", str(port), "--config", str(config))
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT, cwd=directory)
    service = StartedService(Address("127.0.0.1", port), process.pid, process, log, before)
    with contextlib.ExitStack() as undo:
        undo.enter_context(service)
        wait_until(lambda: _ready(service), READY_S, "ready")
        undo.pop_all()
    return service


def _ready(service: StartedService) -> bool:
    assert service.process is not None
    if service.process.poll() is not None:
        last = service.log.read_text(errors="replace").strip().splitlines()[-5:]
        raise ServiceFailed(f"ended with status {service.process.returncode}:\n  " + "\n  ".join(last))
    try:
        return service.health().get("status") == "ok"
    except (OSError, ConnectionLost, ProtocolError, ServiceFailed):
        return False


def wait_until(holds: Callable[[], bool], timeout_s: float, what: str) -> None:
    """Return once `holds()` is true. *Raises* ServiceFailed after `timeout_s`."""
    until = time.monotonic() + timeout_s
    while not holds():
        if time.monotonic() > until:
            raise ServiceFailed(f"not {what} within {timeout_s:g} s")
        time.sleep(POLL_S)
