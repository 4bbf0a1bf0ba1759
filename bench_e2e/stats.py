"""The statistics behind the tables, all pure. Those of ops are of hundreds of rounds, and so of their medians."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEAST_PAIRS = 5  # that give an interval: with fewer it is as wide as luck decides

# Two-sided 95% quantiles of Student's t by degrees of freedom, from any printed table.
T_95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def spread(values: Sequence[float]) -> str:
    """Median and extremes of one figure over the pairs, in at most 19 characters: the whole table fits into 80."""
    low, high = min(values), max(values)
    digits = 1 if high >= 100 else 2
    extremes = "" if low == high else f" [{low:.{digits}f}-{high:.{digits}f}]"
    return f"{statistics.median(values):.{digits}f}{extremes}"


@dataclass(frozen=True)
class Ratio:
    """How one variant compares with another; below 1 is faster. Too few pairs give no interval, but None."""

    ratio: float
    low: float | None
    high: float | None
    pairs: int

    def __str__(self) -> str:
        if self.low is None:
            return f"{self.ratio:.3f} [{self.pairs} pair{'' if self.pairs == 1 else 's'}]"
        return f"{self.ratio:.3f} [{self.low:.3f}-{self.high:.3f}]"


def paired_ratio(baseline: Sequence[float], other: Sequence[float]) -> Ratio | None:
    """`other / baseline`, pair by pair: what a slow minute of the machine does to both cancels.

    None where a value is not positive: a short load's noise can be larger than its time per token. Raises ValueError if
    the values do not pair up, or there are none.
    """
    if len(baseline) != len(other) or not baseline:
        raise ValueError(f"pairs are incomplete: {len(baseline)} against {len(other)}")
    if min(*baseline, *other) <= 0:
        return None
    logs = [math.log(b / a) for a, b in zip(baseline, other, strict=True)]
    centre = statistics.fmean(logs)
    if len(logs) < LEAST_PAIRS:
        return Ratio(math.exp(centre), None, None, len(logs))
    quantile = T_95[min(len(logs) - 1, len(T_95)) - 1]  # past the table it errs by under 4%, and on the careful side
    reach = quantile * statistics.stdev(logs) / math.sqrt(len(logs))
    return Ratio(math.exp(centre), math.exp(centre - reach), math.exp(centre + reach), len(logs))


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Of at least two microseconds, each of a round."""
    low, median, high = (round(value, 4) for value in statistics.quantiles(values, n=4, method="inclusive"))
    return {"median_us": median, "p25_us": low, "p75_us": high, "rounds": len(values)}


def median_ratio(ours: Sequence[float], other: Sequence[float]) -> float | None:
    """`other / ours`, round by round: above 1 ours is faster. None without a positive time of ours."""
    ratios = [b / a for a, b in zip(ours, other, strict=True) if a > 0]
    return statistics.median(ratios) if ratios else None
