"""What the service did, for Prometheus: plain integers and lists while running, families only when they are read.

Observing one execution is some twenty additions on the event loop's thread; nothing here locks. The names that start
with `zeroboot_` are that server's, so that its dashboards work; `sandfork_` names are our own.
"""

from __future__ import annotations

import os
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Protocol

from prometheus_client import CollectorRegistry
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric

from sandfork.errors import ForkFailed, SandforkError
from sandfork.model import Caller, ExecPlan, ExecResult, Outcome

BUCKETS_MS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0)
CONTENT_TYPE = b"text/plain; version=0.0.4; charset=utf-8"
ENTROPY_STEPS = frozenset({"entropy", "reseed"})
"""The steps of a fork whose failure means that its random generators could not be reseeded."""

ABANDONED = "client_gone"
"""The reason under which executions are counted that were stopped because nobody waited for them any more."""


class AdmissionCounts(Protocol):
    """Executions running, queued, and answered but not yet destroyed."""

    @property
    def running(self) -> int: ...
    @property
    def queued(self) -> int: ...
    @property
    def dying(self) -> int: ...


class PoolCounts(Protocol):
    """One template's sandboxes at this moment, and how often one was there when asked for."""

    @property
    def key(self) -> str: ...
    @property
    def parked(self) -> int: ...
    @property
    def forking(self) -> int: ...
    @property
    def waiting(self) -> int: ...
    @property
    def hits(self) -> int: ...
    @property
    def misses(self) -> int: ...
    @property
    def failures(self) -> int: ...


class EngineCounts(Protocol):
    """What the engine counts itself."""

    @property
    def admission(self) -> AdmissionCounts: ...
    @property
    def pool(self) -> Sequence[PoolCounts]: ...
    @property
    def lost(self) -> int: ...
    @property
    def sessions(self) -> int: ...


class Histogram:
    """Counts by bucket, and a sum; the buckets are `BUCKETS_MS`."""

    __slots__ = ("counts", "total")

    def __init__(self) -> None:
        self.counts = [0] * (len(BUCKETS_MS) + 1)
        self.total = 0.0

    def observe(self, value_ms: float) -> None:
        """Count one value; a bucket includes its upper bound."""
        self.counts[bisect_left(BUCKETS_MS, value_ms)] += 1
        self.total += value_ms

    def family(self, name: str, text: str) -> Metric:
        """Return what Prometheus reads."""
        bounds = [f"{bound:g}" for bound in BUCKETS_MS] + ["+Inf"]
        buckets = list(zip(bounds, accumulate(self.counts), strict=True))
        return HistogramMetricFamily(name, text, buckets=buckets, sum_value=self.total)


class NullMetrics:
    """Counts nothing."""

    def observe(self, caller: Caller, plan: ExecPlan | None, outcome: ExecResult | BaseException) -> None:
        """Ignore an execution."""

    def rejected(self, reason: str) -> None:
        """Ignore a refusal."""

    def exposition(self) -> bytes:
        """Return no metrics."""
        return b""


class Metrics:
    """Counts of this process since its start."""

    def __init__(self, counts: Callable[[], EngineCounts] | None = None) -> None:
        """`counts` is asked when the metrics are read, for what the engine counts itself."""
        self._counts = counts
        self._statuses: Counter[str] = Counter()
        self._outcomes: Counter[tuple[str, str]] = Counter()
        self._rejections: Counter[str] = Counter()
        self._fork_us = self._exec_us = 0
        self._fork_ms, self._exec_ms, self._total_ms, self._queue_ms = (Histogram() for _ in range(4))
        self._reseeded = self._not_reseeded = 0
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def watch(self, counts: Callable[[], EngineCounts]) -> None:
        """Ask `counts` for what the engine counts itself, from now on."""
        self._counts = counts

    def observe(self, caller: Caller, plan: ExecPlan | None, outcome: ExecResult | BaseException) -> None:
        """Count one execution that is over: its result, or why there is none."""
        if isinstance(outcome, ExecResult):
            self._observe_result(outcome, plan.language if plan is not None else "")
        elif isinstance(outcome, SandforkError):
            self._statuses["error"] += 1
            self._rejections[outcome.code] += 1
            if isinstance(outcome, ForkFailed) and outcome.step in ENTROPY_STEPS:
                self._not_reseeded += 1
        else:
            self._rejections[ABANDONED if not isinstance(outcome, Exception) else "internal"] += 1

    def rejected(self, reason: str) -> None:
        """Count a request that was refused before it reached the engine."""
        self._rejections[reason] += 1

    def exposition(self) -> bytes:
        """Return every metric in Prometheus' text format 0.0.4."""
        # The library ends every counter's name with _total; this one is known without it.
        return generate_latest(self._registry).replace(b"zeroboot_total_executions_total", b"zeroboot_total_executions")

    def collect(self) -> Iterator[Metric]:
        """Yield the metric families, for the registry."""
        yield from self._executions()
        yield from self._times()
        if self._counts is not None:
            yield from _engine_families(self._counts())

    def _observe_result(self, result: ExecResult, language: str) -> None:
        outcome, timings = result.outcome, result.timings
        if outcome is Outcome.EXITED and result.exit_code == 0:
            self._statuses["success"] += 1
        else:
            self._statuses["timeout" if outcome is Outcome.TIMED_OUT else "error"] += 1
        self._outcomes[language, outcome.value] += 1
        self._fork_us += round(timings.fork_s * 1e6)
        self._exec_us += round(timings.exec_s * 1e6)
        self._fork_ms.observe(timings.fork_s * 1e3)
        self._exec_ms.observe(timings.exec_s * 1e3)
        self._total_ms.observe(timings.total_s * 1e3)
        self._queue_ms.observe(timings.queue_s * 1e3)
        self._reseeded += 1

    def _executions(self) -> Iterator[Metric]:
        statuses = CounterMetricFamily("zeroboot_total_executions", "Executions by how they ended.", labels=["status"])
        for status in ("success", "error", "timeout"):
            statuses.add_metric([status], self._statuses[status])
        yield statuses
        outcomes = CounterMetricFamily(
            "sandfork_executions", "Executions by language and outcome.", labels=["language", "outcome"]
        )
        for (language, outcome), count in sorted(self._outcomes.items()):
            outcomes.add_metric([language, outcome], count)
        yield outcomes
        rejections = CounterMetricFamily("sandfork_rejected", "Requests without a result.", labels=["reason"])
        for reason, count in sorted(self._rejections.items()):
            rejections.add_metric([reason], count)
        yield rejections
        entropy = CounterMetricFamily(
            "zeroboot_entropy_reseed",
            "Sandboxes reseeded after their fork.",
            labels=["result"],
        )
        entropy.add_metric(["ok"], self._reseeded)
        entropy.add_metric(["failure"], self._not_reseeded)
        yield entropy

    def _times(self) -> Iterator[Metric]:
        yield CounterMetricFamily("zeroboot_fork_time_microseconds", "Time spent forking.", value=self._fork_us)
        yield CounterMetricFamily("zeroboot_exec_time_microseconds", "Time spent in user code.", value=self._exec_us)
        yield self._fork_ms.family("zeroboot_fork_time_milliseconds", "From the queue to user code.")
        yield self._exec_ms.family("zeroboot_exec_time_milliseconds", "User code to its end.")
        yield self._total_ms.family("zeroboot_total_time_milliseconds", "The whole, the queue included.")
        yield self._queue_ms.family("sandfork_queue_time_milliseconds", "Waiting for a turn.")
        yield GaugeMetricFamily(
            "zeroboot_memory_usage_bytes", "Resident memory of the server process.", value=resident_bytes()
        )


def _engine_families(counts: EngineCounts) -> Iterator[Metric]:
    admission = counts.admission
    yield GaugeMetricFamily("zeroboot_concurrent_forks", "Sandboxes running a program.", value=admission.running)
    yield GaugeMetricFamily("sandfork_queue_depth", "Executions waiting for a turn.", value=admission.queued)
    yield GaugeMetricFamily("sandfork_dying", "Sandboxes answered and not yet destroyed.", value=admission.dying)
    yield GaugeMetricFamily("sandfork_sessions", "Sessions at this moment.", value=counts.sessions)
    yield CounterMetricFamily("sandfork_lost", "Sandboxes that could not be destroyed.", value=counts.lost)
    gauges = {
        "parked": GaugeMetricFamily("sandfork_parked", "Sandboxes ready for a request.", labels=["template"]),
        "forking": GaugeMetricFamily("sandfork_forking", "Sandboxes being forked.", labels=["template"]),
        "waiting": GaugeMetricFamily("sandfork_pool_waiting", "Executions waiting for a fork.", labels=["template"]),
    }
    counters = {
        "hits": CounterMetricFamily("sandfork_pool_hits", "A sandbox was parked already.", labels=["template"]),
        "misses": CounterMetricFamily("sandfork_pool_misses", "A sandbox had to be forked.", labels=["template"]),
        "failures": CounterMetricFamily("sandfork_fork_failures", "Forks that failed.", labels=["template"]),
    }
    for shelf in counts.pool:
        for name, gauge in gauges.items():
            gauge.add_metric([shelf.key], getattr(shelf, name))
        for name, counter in counters.items():
            counter.add_metric([shelf.key], getattr(shelf, name))
    yield from gauges.values()
    yield from counters.values()


def resident_bytes() -> int:
    """Return the resident set of this process: field 2 of /proc/self/statm, see proc(5)."""
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")
