"""Order statistics of samples, and what a result must reach."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

MIN_SAMPLES_FOR_P99 = 100


@dataclass(frozen=True, slots=True)
class Summary:
    """Order statistics of `n` samples, in the samples' own unit.

    `p99` is None below 100 samples, where it would be the maximum under another name.
    """

    n: int
    min: float
    p50: float
    p99: float | None
    max: float
    mean: float


@dataclass(frozen=True, slots=True)
class Reach:
    """A bound on a ratio or a count: at most, or at least, `bound`."""

    bound: float
    at_most: bool = True

    def holds(self, value: float) -> bool:
        """Say whether `value` is within the bound; NaN never is."""
        return value <= self.bound if self.at_most else value >= self.bound

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.bound:g}"


def quantile(ordered: Sequence[float], q: float) -> float:
    """Return the `q` quantile (0 to 1) of ascending samples, interpolated linearly. *Raises* ValueError."""
    if not ordered:
        raise ValueError("no samples")
    if not 0 <= q <= 1:
        raise ValueError(f"a quantile is between 0 and 1, not {q}")
    position = q * (len(ordered) - 1)
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def summarise(samples: Iterable[float]) -> Summary:
    """Return the order statistics of at least one sample. *Raises* ValueError for none."""
    ordered = sorted(samples)
    p99 = quantile(ordered, 0.99) if len(ordered) >= MIN_SAMPLES_FOR_P99 else None
    return Summary(
        n=len(ordered),
        min=ordered[0] if ordered else math.nan,
        p50=quantile(ordered, 0.5),
        p99=p99,
        max=ordered[-1],
        mean=math.fsum(ordered) / len(ordered),
    )


def round_robin(turns: Sequence[int]) -> list[int]:
    """Return an order of play in which contender i appears `turns[i]` times, spread evenly over the whole.

    Contenders with as many turns as each other alternate strictly.
    """
    due = [((turn + 0.5) / count, index) for index, count in enumerate(turns) for turn in range(count)]
    return [index for _, index in sorted(due)]
