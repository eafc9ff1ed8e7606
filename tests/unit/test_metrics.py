"""The metrics: their names and buckets as dashboards query them, and what is counted where."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

import pytest
from prometheus_client.parser import text_string_to_metric_families

from sandfork.errors import ForkFailed, Overloaded
from sandfork.metrics import BUCKETS_MS, Metrics, NullMetrics
from sandfork.model import Caller, ExecPlan, ExecResult, Limits, Outcome, Step, Timings
from tests.support.stub_engine import ended

CALLER = Caller("ci")
PLAN = ExecPlan("id", CALLER, "python", "python-bare", Step(("python",)), Limits())


@dataclass(frozen=True)
class Admission:
    running: int = 3
    queued: int = 2
    dying: int = 1


@dataclass(frozen=True)
class Shelf:
    key: str = "python"
    parked: int = 8
    forking: int = 1
    waiting: int = 0
    hits: int = 90
    misses: int = 10
    failures: int = 4


@dataclass(frozen=True)
class Engine:
    admission: Admission = Admission()
    pool: tuple[Shelf, ...] = (Shelf(), Shelf("node"))
    lost: int = 5
    sessions: int = 6


def samples(metrics: Metrics) -> dict[str, float]:
    """Return what a scrape says: sample with its labels → value."""
    found = {}
    for line in metrics.exposition().decode().splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            found[name] = float(value)
    return found


def types(metrics: Metrics) -> dict[str, str]:
    lines = metrics.exposition().decode().splitlines()
    return {line.split()[2]: line.split()[3] for line in lines if line.startswith("# TYPE")}


def observed(*outcomes: ExecResult | BaseException) -> dict[str, float]:
    metrics = Metrics()
    for outcome in outcomes:
        metrics.observe(CALLER, PLAN, outcome)
    return samples(metrics)


def test_every_name_a_dashboard_queries_is_there_with_its_type() -> None:
    metrics = Metrics(Engine)
    expected = {
        "zeroboot_total_executions": "counter",
        "zeroboot_concurrent_forks": "gauge",
        "zeroboot_fork_time_microseconds_total": "counter",
        "zeroboot_exec_time_microseconds_total": "counter",
        "zeroboot_memory_usage_bytes": "gauge",
        "zeroboot_fork_time_milliseconds": "histogram",
        "zeroboot_exec_time_milliseconds": "histogram",
        "zeroboot_total_time_milliseconds": "histogram",
        "zeroboot_entropy_reseed_total": "counter",
    }
    assert {name: kind for name, kind in types(metrics).items() if name.startswith("zeroboot_")} == expected
    names = samples(metrics)
    for status in ("success", "error", "timeout"):
        assert names[f'zeroboot_total_executions{{status="{status}"}}'] == 0
    for result in ("ok", "failure"):
        assert names[f'zeroboot_entropy_reseed_total{{result="{result}"}}'] == 0


def test_no_series_is_there_that_nobody_asked_for() -> None:
    text = Metrics(Engine).exposition().decode()
    assert "_created" not in text
    assert "_total_total" not in text
    assert "zeroboot_total_executions_total" not in text


@pytest.mark.parametrize("span", ["fork", "exec", "total"])
def test_the_histograms_have_the_documented_buckets(span: str) -> None:
    prefix = f'zeroboot_{span}_time_milliseconds_bucket{{le="'
    bounds = [name.removeprefix(prefix)[:-2] for name in observed() if name.startswith(prefix)]
    assert bounds == "0.1 0.25 0.5 1 2.5 5 10 25 50 100 250 500 1000 +Inf".split()


def test_a_parser_of_the_format_reads_it_all() -> None:
    metrics = Metrics(Engine)
    metrics.observe(CALLER, PLAN, ended())
    families = list(text_string_to_metric_families(metrics.exposition().decode()))
    assert len(families) >= 20


def test_executions_are_counted_by_how_they_ended() -> None:
    found = observed(
        ended(),
        ended(exit_code=1),
        ended(outcome=Outcome.SIGNALLED, exit_code=None, signal=11),
        ended(outcome=Outcome.OUT_OF_MEMORY, exit_code=None, signal=9),
        ended(outcome=Outcome.TIMED_OUT, exit_code=None, signal=9),
        Overloaded("full"),
    )
    assert found['zeroboot_total_executions{status="success"}'] == 1
    assert found['zeroboot_total_executions{status="error"}'] == 4
    assert found['zeroboot_total_executions{status="timeout"}'] == 1
    assert found['sandfork_executions_total{language="python",outcome="out_of_memory"}'] == 1
    assert found['sandfork_rejected_total{reason="overloaded"}'] == 1


def test_times_are_added_up_and_sorted_into_buckets() -> None:
    found = observed(
        ended(timings=Timings(0.0, 0.0001, 0.001, 0.002)),
        ended(timings=Timings(0.0, 0.0002, 0.5, 2.0)),
    )
    assert found["zeroboot_fork_time_microseconds_total"] == 300
    assert found["zeroboot_exec_time_microseconds_total"] == 501000
    assert found['zeroboot_fork_time_milliseconds_bucket{le="0.1"}'] == 1
    assert found['zeroboot_fork_time_milliseconds_bucket{le="0.25"}'] == 2
    assert found['zeroboot_exec_time_milliseconds_bucket{le="1"}'] == 1
    assert found['zeroboot_exec_time_milliseconds_bucket{le="250"}'] == 1
    assert found['zeroboot_exec_time_milliseconds_bucket{le="500"}'] == 2
    assert found['zeroboot_total_time_milliseconds_bucket{le="1000"}'] == 1
    assert found['zeroboot_total_time_milliseconds_bucket{le="+Inf"}'] == 2
    assert found["zeroboot_total_time_milliseconds_count"] == 2
    assert found["zeroboot_total_time_milliseconds_sum"] == pytest.approx(2002.0)
    assert len(BUCKETS_MS) == 13


def test_a_fork_that_could_not_be_reseeded_is_a_failure_of_entropy() -> None:
    found = observed(ended(), ForkFailed("no", step="entropy"), ForkFailed("no", step="clone3"))
    assert found['zeroboot_entropy_reseed_total{result="ok"}'] == 1
    assert found['zeroboot_entropy_reseed_total{result="failure"}'] == 1


def test_executions_nobody_waited_for_and_mistakes_of_ours_have_a_reason() -> None:
    found = observed(asyncio.CancelledError(), RuntimeError("a mistake"))
    assert found['sandfork_rejected_total{reason="client_gone"}'] == 1
    assert found['sandfork_rejected_total{reason="internal"}'] == 1


def test_what_the_engine_counts_is_shown() -> None:
    metrics = Metrics()
    assert "sandfork_queue_depth" not in samples(metrics)
    metrics.watch(Engine)
    found = samples(metrics)
    assert found["zeroboot_concurrent_forks"] == 3
    assert found["sandfork_queue_depth"] == 2
    assert found["sandfork_lost_total"] == 5
    assert found["sandfork_sessions"] == 6
    assert found['sandfork_parked{template="python"}'] == 8
    assert found['sandfork_pool_hits_total{template="node"}'] == 90
    assert found['sandfork_pool_misses_total{template="node"}'] == 10
    assert found['sandfork_fork_failures_total{template="python"}'] == 4


def test_memory_is_that_of_this_process() -> None:
    assert 1 << 20 < observed()["zeroboot_memory_usage_bytes"] < 1 << 34


def test_null_metrics_count_nothing() -> None:
    nothing = NullMetrics()
    nothing.observe(CALLER, PLAN, ended())
    nothing.rejected("x")
    assert nothing.exposition() == b""
