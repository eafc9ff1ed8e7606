"""Rows of results with their verdicts, as a table for people and JSON for machines."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sandfork.bench.contenders import Absent
from sandfork.bench.machine import Machine
from sandfork.bench.stats import Reach, Summary

SCHEMA = 1

REACHES = {
    "http_print_p50": Reach(0.09),
    "http_print_p99": Reach(0.25),
    "fork_time_p50": Reach(0.012),
    "on_demand_p50": Reach(0.25),
    "on_demand_idle_p50": Reach(0.25),
    "first_after_idle_p50": Reach(0.12),
    "numpy_p50": Reach(0.04),
    "node_p50": Reach(0.15),
    "sustained_shared_4": Reach(3.3, at_most=False),
    "sustained_shared_16": Reach(3.3, at_most=False),
    "sustained_shared_64": Reach(3.3, at_most=False),
    "sustained_own_4": Reach(2.4, at_most=False),
    "sustained_own_16": Reach(2.4, at_most=False),
    "sustained_own_64": Reach(2.4, at_most=False),
    "burst": Reach(8, at_most=False),
    "parked_time": Reach(130),
    "parked_memory": Reach(1.6),
    "parked_time_shared": Reach(130),
    "parked_memory_shared": Reach(1.6),
    "parked_latency": Reach(1.2),
    "memory_growth": Reach(1.05),
    "stream_first": Reach(3),
    "session_make": Reach(1.2),
    "sessions_memory": Reach(2.0),
    "sessions_cpu": Reach(0.01),
    "left_files": Reach(0),
    "left_processes": Reach(0),
    "left_cgroups": Reach(0),
    "left_mounts": Reach(0),
    "left_network_namespaces": Reach(0),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One result.

    `value` is the headline in `unit`; `summary` (same unit) the samples behind it, when there are any. `judged`
    is what a reach is compared with: the ratio to the yardstick named by `against`, or a count. `wrong` answers
    make the row a miss whatever its figures.
    """

    key: str
    what: str
    value: float
    unit: str
    judged: float | None = None
    against: str = ""
    summary: Summary | None = None
    note: str = ""
    wrong: int = 0

    @property
    def reach(self) -> Reach | None:
        """The bound this row must keep, if there is one."""
        return REACHES.get(self.key)

    @property
    def verdict(self) -> str:
        """Return "pass", "MISS", or "" where nothing is promised."""
        if self.wrong:
            return "MISS"
        if self.reach is None or self.judged is None:
            return ""
        return "pass" if self.reach.holds(self.judged) else "MISS"


@dataclass(slots=True)
class Report:
    """A whole run: where it ran, what it found, and what it went without."""

    machine: Machine
    rows: list[Row] = field(default_factory=list)
    absent: list[Absent] = field(default_factory=list)
    duration_s: float = 0.0
    steal_share: float = 0.0
    quick: bool = False

    def add(self, rows: Iterable[Row]) -> None:
        """Append results."""
        self.rows.extend(rows)

    @property
    def holds(self) -> bool:
        """Whether every row reaches what it must and nothing broke."""
        return not any(row.verdict == "MISS" for row in self.rows) and not any(absent.failed for absent in self.absent)


def write_json(report: Report, path: Path) -> None:
    """Write the report as one JSON document: `schema`, `machine`, `rows` (with `reach`, `verdict`), `absent` …"""
    rows = [
        {**asdict(row), "reach": str(row.reach) if row.reach else None, "verdict": row.verdict or None}
        for row in report.rows
    ]
    document = {"schema": SCHEMA, **asdict(report), "rows": rows}
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")


def write_markdown(report: Report, path: Path) -> None:
    """Write the machine, the rows and what is absent as Markdown, for a document."""
    lines = [
        *(f"{line}  " for line in headline(report).splitlines()),
        "",
        "| what | value | p50 | p99 | min | n | ratio | reach | |",
    ]
    lines.append("|---|--:|--:|--:|--:|--:|--:|--:|---|")
    lines += ["| " + " | ".join(cell.replace("|", "\\|") for cell in _cells(row)) + " |" for row in report.rows]
    notes = [f"* {row.what}: {row.note}" for row in report.rows if row.note]
    absent = [f"* {'failed' if one.failed else 'not measured'}: {one.name}: {one.reason}" for one in report.absent]
    path.write_text("\n".join([*lines, "", *notes, *absent]).rstrip() + "\n")


def headline(report: Report) -> str:
    """Return three lines that say where and when a report was made."""
    machine = report.machine
    return (
        f"{machine.cpu}, {machine.cores} cores{', virtual' if machine.virtualised else ''}, "
        f"{machine.memory_bytes / 2**30:.1f} GiB, Linux {machine.kernel}, {machine.distribution}, cgroups "
        f"{machine.cgroups}\nbare Python {machine.bare_python} ({machine.bare_python_start_up_files} start-up lines "
        f"in its site packages), service on Python {machine.service_python}, node {machine.node}, uid {machine.uid}\n"
        f"{machine.date}, took {report.duration_s:.0f} s, load before {machine.load_at_start:.2f}, "
        f"stolen by the hypervisor {report.steal_share:.1%}"
        f"{'; quick: fewer samples than the reaches ask for' if report.quick else ''}"
    )


def print_table(report: Report, console: Console) -> None:
    """Print the report."""
    console.print(headline(report), highlight=False, markup=False)
    table = Table(show_lines=False, pad_edge=False)
    table.add_column("what")
    for name in ("value", "p50", "p99", "min", "n", "ratio", "reach"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("")
    for row in report.rows:
        table.add_row(*_cells(row), style="red" if row.verdict == "MISS" else "")
    console.print(table)
    for row in report.rows:
        if row.note:
            console.print(f"  {row.what}: {row.note}", highlight=False, markup=False)
    for absent in report.absent:
        how = "FAILED" if absent.failed else "not measured"
        style = "red" if absent.failed else "yellow"
        console.print(f"  {how}: {absent.name}: {absent.reason}", style=style, highlight=False, markup=False)


def _cells(row: Row) -> list[str]:
    summary = row.summary
    return [
        row.what,
        f"{_number(row.value)} {row.unit}".strip(),
        _number(summary.p50) if summary else "",
        (_number(summary.p99) if summary.p99 is not None else f"max {_number(summary.max)}") if summary else "",
        _number(summary.min) if summary else "",
        str(summary.n) if summary else "",
        f"{row.judged:.3g}× {row.against}".strip() if row.judged is not None and row.against else "",
        str(row.reach) if row.reach else "",
        row.verdict + (f" ({row.wrong} wrong answers)" if row.wrong else ""),
    ]


def _number(value: float) -> str:
    if (float(value).is_integer() and abs(value) >= 1) or value == 0:
        return f"{value:.0f}"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
