"""The whole run: which measurements, in which order, against which service."""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from sandfork.bench import contenders, crowd, kept, load, sections
from sandfork.bench.contenders import Absent
from sandfork.bench.machine import cpu_ticks, describe, steal_share
from sandfork.bench.report import Report, Row
from sandfork.bench.sections import Sizes
from sandfork.bench.service import Left, Service, ServiceFailed, StartedService, Variant, start
from sandfork.bench.spawn import Command, WrongAnswer
from sandfork.bench.wire import Address, ConnectionLost, ProtocolError

SECTIONS = (
    "printing", "numpy", "node", "idle", "contenders", "sustained", "sessions", "memory", "on-demand", "burst",
    "parked",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Choice:
    """What to run: against `address` when given, else a service started with `command`; `only` names sections."""

    sizes: Sizes
    command: tuple[str, ...]
    address: Address | None = None
    jails: bool = False
    nsjail: Path | None = None
    packages: Path | None = None
    only: frozenset[str] = frozenset()
    quick: bool = False


Section = Callable[[], Sequence[Row]]


class Suite:
    """Runs sections one after another; one that fails is named as absent with its reason, the others go on."""

    def __init__(self, choice: Choice, console: Console) -> None:
        self._choice = choice
        self._console = console
        self._report = Report(describe(), quick=choice.quick)
        self._others: list[Command] = []
        self._node: Command | None = None
        self._unused: tuple[str, ...] = ()
        self._left: list[Left] = []

    def run(self) -> Report:
        """Measure everything chosen and return the report."""
        started, ticks = time.monotonic(), cpu_ticks()
        with tempfile.TemporaryDirectory(prefix="sandfork-bench-") as name:
            directory = Path(name)
            self._find_contenders(directory)
            if self._choice.address is not None:
                self._measure_running(Service(self._choice.address))
            else:
                self._measure_started(functools.partial(start, self._choice.command, directory=directory))
        self._report.duration_s = time.monotonic() - started
        self._report.steal_share = steal_share(ticks, cpu_ticks())
        return self._report

    def _find_contenders(self, directory: Path) -> None:
        node, absent = contenders.present([contenders.bare_node()])
        self._node = node[0] if node else None
        candidates: list[Command | Absent] = [contenders.bare_python(), contenders.bare_python_isolated()]
        if self._choice.jails:
            candidates += [contenders.bubblewrap(), contenders.nsjail(self._choice.nsjail), contenders.runc(directory)]
        self._others, more = contenders.present(candidates)
        self._others += node
        self._report.absent += absent + more

    def _measure_running(self, service: Service) -> None:
        self._at_rest(service)
        self._section("sustained", lambda: load.sustained(service, "given", "sustained", self._choice.sizes))
        for name in ("sessions", "on-demand", "burst", "memory", "parked"):
            self._report.absent.append(Absent(name, "needs a service that this run starts itself"))

    def _measure_started(self, begin: Callable[[Variant], StartedService]) -> None:
        self._with_service(begin, Variant(), self._main_service)
        sizes, unused = self._choice.sizes, self._unused
        if self._wants("sustained"):
            self._with_service(begin, Variant(own_network_namespace=False), self._shared_service)
        if self._wants("sessions"):
            self._with_service(begin, Variant(), self._sessions_service)
        if self._wants("memory"):
            self._with_service(begin, Variant(), self._fresh_service)
        if self._wants("on-demand"):
            self._with_service(begin, Variant(0), self._bare_service)
        if self._wants("burst"):
            self._with_service(begin, Variant(sizes.burst, unused=unused), self._burst_service)

        def parking(parked: int, *, own: bool = True) -> StartedService:
            return begin(Variant(parked, own, unused))

        self._section("parked", lambda: crowd.crowded(parking, self._left, sizes))
        if not self._choice.quick:
            shared = functools.partial(parking, own=False)
            self._section("parked", lambda: crowd.crowded_shared(shared, self._left, sizes))
        if self._left:
            self._report.add(left_rows(self._left))

    def _with_service(
        self,
        begin: Callable[[Variant], StartedService],
        variant: Variant,
        measure: Callable[[StartedService], None],
    ) -> None:
        try:
            with begin(variant) as service:
                service.wait_settled()
                measure(service)
                self._left.append(service.stop())
        except (ServiceFailed, OSError) as error:
            self._report.absent.append(Absent(f"a service with {variant}", str(error), failed=True))

    def _main_service(self, service: StartedService) -> None:
        self._unused = tuple(name for name in service.templates() if name != "python")
        self._at_rest(service)
        sizes = self._choice.sizes
        self._section("sustained", lambda: load.sustained(service, "own", "sustained, own net namespace", sizes))

    def _shared_service(self, service: StartedService) -> None:
        sizes = self._choice.sizes
        self._section("sustained", lambda: load.sustained(service, "shared", "sustained, shared net namespace", sizes))

    def _sessions_service(self, service: StartedService) -> None:
        sizes = self._choice.sizes
        self._section("sessions", lambda: kept.latencies(service.address, sizes))
        self._section("sessions", lambda: kept.idle(service))

    def _fresh_service(self, service: StartedService) -> None:
        self._section("memory", lambda: load.memory_growth(service, self._choice.sizes))

    def _bare_service(self, service: StartedService) -> None:
        self._section("on-demand", lambda: sections.on_demand(service.address, self._choice.sizes))

    def _burst_service(self, service: StartedService) -> None:
        self._section("burst", lambda: load.burst(service, self._choice.sizes))

    def _at_rest(self, service: Service) -> None:
        choice, sizes, address = self._choice, self._choice.sizes, service.address
        self._section("printing", lambda: sections.printing(address, sizes))
        self._section("numpy", lambda: sections.numpy(address, choice.packages, sizes))
        if self._node is not None:
            node = self._node
            self._section("node", lambda: sections.node(address, node, sizes))
        idle = "first request after 2.5 s idle"
        self._section(
            "idle", lambda: sections.after_idle(address, 2.5, sizes.idle_samples, "first_after_idle_p50", idle)
        )
        self._section("contenders", lambda: sections.jails(address, self._others, sizes))

    def _wants(self, name: str) -> bool:
        return not self._choice.only or name in self._choice.only

    def _section(self, name: str, measure: Section) -> None:
        if not self._wants(name):
            return
        self._console.print(f"[dim]measuring {name} …[/dim]")
        try:
            self._report.add(measure())
        except (ServiceFailed, WrongAnswer, ConnectionLost, ProtocolError, OSError) as error:
            self._report.absent.append(Absent(name, f"{type(error).__name__}: {error}", failed=True))


def left_rows(left: Sequence[Left]) -> list[Row]:
    """Return what services left behind after their shutdowns, all together."""
    found = {
        "processes": sum(one.processes for one in left),
        "cgroups": sum(one.cgroups for one in left),
        "mounts": sum(one.mounts for one in left),
        "network_namespaces": sum(one.network_namespaces for one in left),
    }
    return [
        Row(f"left_{name}", f"{name.replace('_', ' ')} left after {len(left)} shutdowns", count, "", count)
        for name, count in found.items()
    ]
