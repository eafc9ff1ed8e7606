"""A thousand sandboxes parked: how long they take to make, what each costs in memory, and what they cost a request."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from sandfork.bench import census, contenders
from sandfork.bench.contenders import PRINT
from sandfork.bench.probe import Execution, Turns, bare, take_turns
from sandfork.bench.report import Row
from sandfork.bench.sections import GAP_S, Sizes, warm
from sandfork.bench.service import Left, ServiceFailed, StartedService, wait_until
from sandfork.bench.stats import Summary

FEW = 2
FILL_S = 60.0
MB = 1e6

Start = Callable[[int], StartedService]


@dataclass(frozen=True, slots=True)
class Filling:
    """How a pool filled: seconds from the first count seen to the last, and the counts."""

    elapsed_s: float
    first: int
    last: int

    @property
    def per_sandbox_s(self) -> float:
        """Seconds a sandbox."""
        return self.elapsed_s / (self.last - self.first)


@dataclass(frozen=True, slots=True)
class Weight:
    """What parked sandboxes weigh: their count, all their processes' PSS, and the kernel's growth since the start."""

    sandboxes: int
    pss_bytes: int
    kernel_bytes: int


@dataclass(frozen=True, slots=True)
class Pace:
    """Latency of requests and of bare python, in turns, in milliseconds."""

    ours: Summary
    bare: Summary
    wrong: int


@dataclass(frozen=True, slots=True)
class Visit:
    """What one service with so many parked showed."""

    pace: Pace
    weight: Weight
    filling: Filling


def crowded(start: Start, left: list[Left], sizes: Sizes) -> list[Row]:
    """Measure with few parked, with many, and with few again.

    `start(n)` starts a service that parks n; what each leaves behind is appended to `left`.
    """
    few_before, many, few_after = (_visit(start, left, parked, sizes) for parked in (FEW, sizes.parked, FEW))
    yardstick = statistics.fmean(visit.pace.bare.p50 for visit in (few_before, many, few_after))
    return [
        time_row(many.filling, yardstick),
        memory_row(few_before.weight, many.weight),
        latency_row(few_before.pace, many.pace, few_after.pace, sizes.parked),
    ]


def crowded_shared(start: Start, left: list[Left], sizes: Sizes) -> list[Row]:
    """Measure time and memory once more; `start(n)` starts a service whose sandboxes share a network namespace."""
    few, many = (_visit(start, left, parked, sizes) for parked in (FEW, sizes.parked))
    yardstick = statistics.fmean(visit.pace.bare.p50 for visit in (few, many))
    rows = [time_row(many.filling, yardstick), memory_row(few.weight, many.weight)]
    return [replace(row, key=f"{row.key}_shared", what=f"{row.what}, shared net namespace") for row in rows]


def _visit(start: Start, left: list[Left], parked: int, sizes: Sizes) -> Visit:
    kernel_before = census.kernel_memory()
    with start(parked) as service:
        filling = _watch_filling(service, parked)
        service.wait_settled()
        # The kernel's figures first: walking /proc makes slab of its own.
        kernel = census.kernel_memory().total_since(kernel_before)
        inside, count = census.parked_sandboxes(service.tree())
        if count < parked:
            raise ServiceFailed(f"says it has {parked} parked, but only {count} pid namespaces are found below it")
        weight = Weight(count, sum(census.pss_bytes(process.pid) for process in inside), kernel)
        pace = _pace(service, sizes)
        left.append(service.stop())
    return Visit(pace, weight, filling)


def _watch_filling(service: StartedService, target: int) -> Filling:
    started, first = time.monotonic(), service.parked()
    wait_until(lambda: service.parked() >= target, FILL_S, f"{target} parked")
    if first < 0 or first == target > FEW:
        raise ServiceFailed(f"the filling of its pool could not be watched: {first} of {target} were parked at first")
    return Filling(time.monotonic() - started, first, target)


def _pace(service: StartedService, sizes: Sizes) -> Pace:
    with Execution(service.address, PRINT, "2\n") as execution:
        warm(execution)
        ours, theirs = Turns(sizes.pairs, execution.run), bare(contenders.bare_python(), sizes.pairs // 4)
        take_turns([ours, theirs], GAP_S, sizes.turns_s)
        return Pace(ours.summary_ms(), theirs.summary_ms(), execution.wrong)


def time_row(filling: Filling, yardstick_ms: float) -> Row:
    seconds = filling.per_sandbox_s * filling.last
    note = (
        f"from {filling.first} to {filling.last} parked in {filling.elapsed_s:.2f} s; "
        f"scaled to {filling.last}, in bare p50 a thousand"
    )
    ratio = filling.per_sandbox_s * 1000 / (yardstick_ms / 1e3)
    return Row("parked_time", f"{filling.last} parked: time to make", seconds, "s", ratio, "bare p50", None, note)


def memory_row(few: Weight, many: Weight) -> Row:
    pss = many.pss_bytes / many.sandboxes
    kernel = (many.kernel_bytes - few.kernel_bytes) / (many.sandboxes - few.sandboxes)
    note = (
        f"{pss / MB:.2f} MB PSS of its processes + {kernel / MB:.2f} MB kernel (page tables, stacks, slab, per-cpu, "
        f"tmpfs), {many.sandboxes} sandboxes found, against a service with {few.sandboxes}"
    )
    each = (pss + kernel) / MB
    return Row("parked_memory", f"{many.sandboxes} parked: memory each", each, "MB", each, "", None, note)


def latency_row(before: Pace, many: Pace, after: Pace, parked: int) -> Row:
    """Return the row of what a crowd costs a request.

    The note has the same ratio with each p50 taken in bare starts of its own minute: the three services run one
    after another, and a machine does not keep its pace.
    """
    few = (before.ours.p50 + after.ours.p50) / 2
    few_in_bare = (before.ours.p50 / before.bare.p50 + after.ours.p50 / after.bare.p50) / 2
    wrong = before.wrong + many.wrong + after.wrong
    note = (
        f"p50 {before.ours.p50:.2f} ms with {FEW} before, {after.ours.p50:.2f} ms after; bare p50 meanwhile "
        f"{before.bare.p50:.1f}, {many.bare.p50:.1f}, {after.bare.p50:.1f} ms: in bare starts "
        f"{many.ours.p50 / many.bare.p50 / few_in_bare:.2f}×"
    )
    what = f"latency with {parked} parked / with {FEW}"
    ratio = many.ours.p50 / few
    return Row("parked_latency", what, many.ours.p50, "ms", ratio, f"with {FEW}", many.ours, note, wrong)
