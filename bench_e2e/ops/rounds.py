"""Alternating rounds, and what is said of them: the median, the quartiles, the ratio to ours round by round.

Medians and not means: a round in which the machine did something else is one outlier, not a shift.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Samples = dict[str, list[float]]  # contestant -> one figure a round


@dataclass(frozen=True)
class Summary:
    median: float
    p25: float
    p75: float
    best: float
    rounds: int


def round_robin(
    measure: Callable[[str], float],
    names: Sequence[str],
    rounds: Mapping[str, int],
    before_round: Callable[[], None] | None = None,
) -> Samples:
    """Everyone once a round, each round starting one further on; each stops after its own `rounds`."""
    samples: Samples = {name: [] for name in names}
    for number in range(max(rounds.values(), default=0)):
        if before_round is not None:
            before_round()
        start = number % len(names)
        for name in (*names[start:], *names[:start]):
            if number < rounds[name]:
                samples[name].append(measure(name))
    return samples


def summarize(values: Sequence[float]) -> Summary:
    if len(values) == 1:
        return Summary(values[0], values[0], values[0], values[0], 1)
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return Summary(median, low, high, min(values), len(values))


def ratio_to(ours: Sequence[float], other: Sequence[float]) -> Summary | None:
    """`other / ours`, over the rounds that both ran: above 1 ours is faster. None without a positive pair."""
    ratios = [b / a for a, b in zip(ours, other, strict=False) if a > 0]
    return summarize(ratios) if ratios else None
