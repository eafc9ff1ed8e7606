"""The measurements under load: closed loops of many clients, bursts, and the service's memory over many executions."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass

from sandfork.bench import census, contenders
from sandfork.bench.contenders import PRINT
from sandfork.bench.probe import MS_PER_NS
from sandfork.bench.report import Row
from sandfork.bench.sections import Sizes
from sandfork.bench.service import Service
from sandfork.bench.spawn import loop_on_all_cores
from sandfork.bench.stats import summarise
from sandfork.bench.wire import Load, LoadResult, drive, exec_request

CLIENTS = (4, 16, 64)
EXPECT = b'"2\\n"'
WARM_UP = 100
SETTLE_S = 0.2
EARLY = 1000
GROWTH_CLIENTS = 8
MB = 1e6


def sustained(service: Service, kind: str, what: str, sizes: Sizes) -> list[Row]:
    """Measure the rate for each number of clients, each between two loops of bare python on all cores."""
    rows, own_cost = [], []
    before = bare_rate(sizes)
    for clients in CLIENTS:
        load = Load(exec_request(PRINT), EXPECT, clients, sizes.load_requests, WARM_UP, limit_s=sizes.load_s)
        result = drive(service.address, load)
        after = bare_rate(sizes)
        rows.append(_rate(f"sustained_{kind}_{clients}", f"{what}, {clients} clients", result, (before + after) / 2))
        own_cost.append(result.client_cpu_s / len(result.latencies_ns) * 1e3)
        before = after
    rows.append(
        Row(
            f"client_cost_{kind}", "this client's own processor time, a request", statistics.fmean(own_cost), "ms",
            note="it runs on the same cores and is not subtracted",
        )
    )  # fmt: skip
    return rows


def bare_rate(sizes: Sizes) -> float:
    """Return starts of bare python a second, one loop a core."""
    return loop_on_all_cores(contenders.bare_python(), sizes.loop_s)


def burst(service: Service, sizes: Sizes) -> list[Row]:
    """Measure bursts no larger than the pool: all requests at once, timed to the last answer."""
    rates, wrong = [], 0
    before = bare_rate(sizes)
    for _ in range(sizes.burst_rounds):
        service.wait_parked(sizes.burst)
        time.sleep(SETTLE_S)
        load = Load(exec_request(PRINT), EXPECT, sizes.burst, sizes.burst, settle_s=SETTLE_S)
        result = drive(service.address, load)
        rates.append(result.rate_per_s)
        wrong += result.wrong
    loop = (before + bare_rate(sizes)) / 2
    rate = statistics.median(rates)
    note = (
        f"median of {len(rates)} bursts, slowest {min(rates):.0f}/s, fastest {max(rates):.0f}/s; bare loop {loop:.0f}/s"
    )
    return [
        Row("burst", f"burst of {sizes.burst} from the pool", rate, "/s", rate / loop, "bare loop", None, note, wrong)
    ]


def memory_growth(service: Service, sizes: Sizes) -> list[Row]:
    """Compare a fresh service's memory and open files after 1,000 executions and after many more.

    All its processes that are not sandboxes count, by proportional share: server, warden, zygotes and what else
    it starts. Files that a slot keeps for its next sandbox do not: one more slot is made whenever more sandboxes than
    ever are there at a time, which is a matter of chance for long.
    """
    first = _memory_after(service, EARLY)
    more = max(sizes.soak - EARLY, sizes.load_requests)
    last = _memory_after(service, more)
    total = EARLY + more
    note = (
        f"{first.memory_bytes / MB:.1f} MB then {last.memory_bytes / MB:.1f} MB, open files {first.files.others} then "
        f"{last.files.others}, beside those of {first.files.slots} then {last.files.slots} slots"
        + ("" if total >= 100_000 else "; the reach is meant for 100,000: --soak 100000")
    )
    growth = last.memory_bytes / first.memory_bytes
    gained = max(0, last.files.others - first.files.others)
    wrong = first.wrong + last.wrong
    what = f"service memory after {total} executions"
    return [
        Row("memory_growth", what, last.memory_bytes / MB, "MB", growth, f"after {EARLY}", None, note, wrong),
        Row("left_files", "open files gained meanwhile", gained, "", gained),
    ]


def _memory_after(service: Service, executions: int) -> Footprint:
    result = drive(service.address, Load(exec_request(PRINT), EXPECT, GROWTH_CLIENTS, executions, limit_s=math.inf))
    service.wait_settled()
    tree = service.tree()
    inside = {process.pid for process in census.parked_sandboxes(tree)[0]}
    own = [process.pid for process in tree if process.pid not in inside]
    return Footprint(sum(census.pss_bytes(pid) for pid in own), census.open_files(own), result.wrong)


@dataclass(frozen=True, slots=True)
class Footprint:
    """PSS and open files of a service's processes without its sandboxes, and wrong answers on the way there."""

    memory_bytes: int
    files: census.OpenFiles
    wrong: int


def _rate(key: str, what: str, result: LoadResult, loop: float) -> Row:
    latencies = summarise(nanoseconds * MS_PER_NS for nanoseconds in result.latencies_ns)
    tail = f", p99 {latencies.p99:.1f}" if latencies.p99 is not None else ""
    note = f"n={latencies.n}, latency p50 {latencies.p50:.1f}{tail} ms; bare loop {loop:.0f}/s"
    if result.first_wrong:
        note += f"; first wrong answer: {result.first_wrong}"
    return Row(key, what, result.rate_per_s, "/s", result.rate_per_s / loop, "bare loop", None, note, result.wrong)
