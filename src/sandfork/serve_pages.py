"""Proofs of languages as a table and as a page of the documentation."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Sequence
from pathlib import Path

from sandfork.serve_proofs import Proof
from sandfork.serve_speed import Speed

_HEAD = ("language", "version", "runs by", "checks", "bare", "run", "ratio", "again", "ratio")

_INTRODUCTION = """\
# Languages

Written by `./dev test languages`: every language that is installed on the host that ran it, proven by the checks of its
file on its real toolchain in the real sandbox. `checks` counts those that passed of those there are; a language without
one says why in its file (`sandfork lang info NAME`). `warm` stands for a warm cache, which bare has not. Times are
medians in milliseconds of the hello program, taken in turns in one run, fewer if it is slow: `bare` is the toolchain
alone, unconfined; `run` an execution with a warm pool, compiled anew where there is a compiler; `again` one whose
artefacts were kept from the run before. Ratios are to bare. A language without times is one whose toolchain does not
run bare as the service's user, which has no name; `bare` in its file can help that.

{host}

How a language is described is in [the guide](../guide/languages.md).
"""


def proof_table(proofs: Sequence[Proof]) -> list[tuple[str, ...]]:
    """Return the table for a terminal, its head first: where each was proven, and times if these were taken."""
    rows = proof_rows(proofs, timed=any(proof.speed for proof in proofs))
    places = ("on", *(proof.place for proof in proofs))
    return [(*row[:2], place, *row[2:]) for row, place in zip(rows, places, strict=True)]


def proof_rows(proofs: Sequence[Proof], *, timed: bool) -> list[tuple[str, ...]]:
    """Return the table, its head first, with columns of times where these were to be taken."""
    rows: list[tuple[str, ...]] = [_HEAD if timed else _HEAD[:4]]
    for proof in proofs:
        row = (proof.language.name, proof.version, proof.kind, f"{proof.passed}/{len(proof.language.checks)}")
        rows.append((*row, *_times(proof.speed)) if timed else row)
    return rows


def _times(speed: Speed | None) -> tuple[str, ...]:
    if speed is None:
        return ("",) * 5
    cached_s, cached_ratio = speed.cached_s, speed.cached_ratio
    again = ("", "") if cached_s is None or cached_ratio is None else (_ms(cached_s), f"{cached_ratio:.2f}x")
    return (_ms(speed.bare_s), _ms(speed.run_s), f"{speed.ratio:.2f}x", *again)


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.3g}" if seconds < 1 else f"{seconds * 1000:.0f}"


def proof_page(proofs: Sequence[Proof]) -> str:
    """Return the page as Markdown."""
    head, *rows = proof_rows(proofs, timed=True)
    align = "|".join("---" if number < 4 else "--:" for number in range(len(head)))
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([_INTRODUCTION.replace("{host}", _host()), f"| {' | '.join(head)} |", f"|{align}|", *lines])


def _host() -> str:
    """Say what it was measured on, and how busy that was."""
    model = "?"
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            model = line.partition(":")[2].strip()
            break
    busy, _, _ = os.getloadavg()
    cores = len(os.sched_getaffinity(0))
    today = time.strftime("%Y-%m-%d", time.gmtime())
    return (
        f"Measured on {today}: {cores} cores of {model}, Linux {platform.release()}. The load average at the end was "
        f"{busy:.1f}: what is much above {cores} means that others used the machine at the same time."
    )
