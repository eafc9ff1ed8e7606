"""The measurements at rest: one execution at a time, beside the same program started bare."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sandfork.bench import contenders
from sandfork.bench.contenders import NODE_PRINT, NUMPY, PRINT
from sandfork.bench.probe import Execution, Turns, bare, take_turns
from sandfork.bench.report import Row
from sandfork.bench.spawn import Command, WrongAnswer
from sandfork.bench.stats import Summary, summarise
from sandfork.bench.wire import Address

GAP_S = 0.004
WARM_UP = 20


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much of everything a run measures.

    `turns_s` and `load_s` bound one interleaved series and one closed loop on a slow machine: the counts of the
    report are what was really measured.
    """

    pairs: int = 400
    jail_rounds: int = 60
    numpy_pairs: int = 60
    node_pairs: int = 100
    idle_samples: int = 10
    on_demand_pairs: int = 300
    short_idle_samples: int = 60
    load_requests: int = 3000
    loop_s: float = 3.0
    burst: int = 64
    burst_rounds: int = 10
    parked: int = 1000
    soak: int = 0
    turns_s: float = 30.0
    load_s: float = 15.0


QUICK = Sizes(
    pairs=150,
    jail_rounds=15,
    numpy_pairs=12,
    node_pairs=25,
    idle_samples=2,
    on_demand_pairs=60,
    short_idle_samples=10,
    load_requests=500,
    loop_s=0.7,
    burst_rounds=3,
    parked=200,
    turns_s=6.0,
    load_s=2.0,
)


def jails(address: Address, others: Sequence[Command], sizes: Sizes) -> list[Row]:
    """Compare every contender that runs here with the service, all taking turns; the first is the yardstick."""
    plays = [bare(command, sizes.jail_rounds) for command in others]
    with Execution(address, PRINT, "2\n") as execution:
        warm(execution)
        ours = Turns(sizes.jail_rounds, execution.run)
        take_turns([*plays, ours], GAP_S, sizes.turns_s)
    yardstick = plays[0].summary_ms().p50
    rows = [
        _latency(f"contender_{command.argv[0]}", command.name, turns.summary_ms(), yardstick)
        for command, turns in zip(others, plays, strict=True)
    ]
    own = _latency("contender_sandfork", "sandfork, POST /v1/exec", ours.summary_ms(), yardstick, execution.wrong)
    return [*rows, own]


def printing(address: Address, sizes: Sizes) -> list[Row]:
    """Measure `print(1+1)` over HTTP against bare, in pairs, and what the service says of its own spans."""
    with Execution(address, PRINT, "2\n") as execution:
        warm(execution)
        ours, theirs = Turns(sizes.pairs, execution.run), bare(contenders.bare_python(), sizes.pairs)
        take_turns([ours, theirs], GAP_S, sizes.turns_s)
        summary, yardstick = ours.summary_ms(), theirs.summary_ms()
        fork, run, total = (
            _spans(execution, spans) for spans in (execution.fork_ms, execution.exec_ms, execution.total_ms)
        )
    slowest = summary.p99 if summary.p99 is not None else summary.max
    return [
        _latency("bare_print", "bare python3 -c 'print(1+1)'", yardstick, yardstick.p50),
        _latency("http_print_p50", "print(1+1) over HTTP, p50", summary, yardstick.p50, execution.wrong),
        Row(
            "http_print_p99", "print(1+1) over HTTP, p99", slowest, "ms", slowest / yardstick.p50, "bare p50",
            note=execution.first_wrong,
        ),
        Row(
            "http_print_min", "print(1+1) over HTTP, fastest of each", summary.min, "ms",
            summary.min / yardstick.min, "bare min",
        ),
        _latency("fork_time_p50", "fork_time_ms, warm pool", fork, yardstick.p50),
        _latency("exec_time_p50", "exec_time_ms", run, yardstick.p50),
        _latency("total_time_p50", "total_time_ms", total, yardstick.p50),
    ]  # fmt: skip


def numpy(address: Address, packages: Path | None, sizes: Sizes) -> list[Row]:
    """Measure the numpy example against bare python doing the same, in pairs."""
    return _against(
        "numpy", "import numpy; print(numpy.random.rand(3))", address, NUMPY, None, "python",
        contenders.bare_numpy(packages), sizes.numpy_pairs, sizes,
    )  # fmt: skip


def node(address: Address, command: Command, sizes: Sizes) -> list[Row]:
    """Measure node's console.log against `node -e`, in pairs."""
    return _against("node", NODE_PRINT, address, NODE_PRINT, "2\n", "node", command, sizes.node_pairs, sizes)


def after_idle(address: Address, idle_s: float, samples: int, key: str, what: str) -> list[Row]:
    """Measure requests that each follow `idle_s` of silence; the yardstick is bare python without such a silence."""
    with Execution(address, PRINT, "2\n") as execution:
        warm(execution)
        theirs = bare(contenders.bare_python(), max(samples, 20))
        take_turns([theirs], GAP_S)
        ours = Turns(samples, execution.run)
        take_turns([ours], idle_s)
    return [_latency(key, what, ours.summary_ms(), theirs.summary_ms().p50, execution.wrong, execution.first_wrong)]


def on_demand(address: Address, sizes: Sizes) -> list[Row]:
    """Measure `print(1+1)` against a service that parks nothing: every sandbox is forked for its request."""
    with Execution(address, PRINT, "2\n") as execution:
        warm(execution)
        ours = Turns(sizes.on_demand_pairs, execution.run)
        theirs = bare(contenders.bare_python(), sizes.on_demand_pairs)
        take_turns([ours, theirs], GAP_S, sizes.turns_s)
        yardstick = theirs.summary_ms().p50
        fork, total = _spans(execution, execution.fork_ms), _spans(execution, execution.total_ms)
    return [
        _latency("on_demand_p50", "on demand (nothing parked), over HTTP", ours.summary_ms(), yardstick,
                 execution.wrong, execution.first_wrong),
        _latency("on_demand_fork", "on demand, fork_time_ms", fork, yardstick),
        _latency("on_demand_total", "on demand, total_time_ms", total, yardstick),
        *after_idle(address, 0.25, sizes.short_idle_samples, "on_demand_idle_p50", "on demand after 250 ms idle"),
    ]  # fmt: skip


def warm(execution: Execution) -> None:
    """Run a few uncounted executions: connections, caches and lazy imports of the service."""
    for _ in range(WARM_UP):
        execution.run()
        time.sleep(GAP_S)
    execution.forget()


def _against(
    key: str, what: str, address: Address, code: str, expect: str | None, language: str, other: Command, pairs: int,
    sizes: Sizes,
) -> list[Row]:  # fmt: skip
    with Execution(address, code, expect, language) as execution:
        warm(execution)
        ours, theirs = Turns(pairs, execution.run), bare(other, pairs)
        take_turns([ours, theirs], GAP_S, sizes.turns_s)
        yardstick, fork = theirs.summary_ms(), _spans(execution, execution.fork_ms)
    return [
        _latency(f"bare_{key}", other.name, yardstick, yardstick.p50),
        _latency(f"{key}_p50", what, ours.summary_ms(), yardstick.p50, execution.wrong, execution.first_wrong),
        _latency(f"{key}_fork", f"{key}, fork_time_ms", fork, yardstick.p50),
    ]


def _spans(execution: Execution, spans_ms: Sequence[float]) -> Summary:
    if not spans_ms:
        raise WrongAnswer(f"not one right answer: {execution.first_wrong}")
    return summarise(spans_ms)


def _latency(key: str, what: str, summary: Summary, yardstick: float, wrong: int = 0, note: str = "") -> Row:
    return Row(key, what, summary.p50, "ms", summary.p50 / yardstick, "bare p50", summary, note, wrong)
