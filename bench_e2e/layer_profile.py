"""One layer of a model, kernel by kernel, found in a profile of decode steps: what the steps repeat most often."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

Span = tuple[str, float, float]
"""A kernel, or an operator on CPU: its name, start and end in us."""

LONGEST_LAYER = 400  # kernels; an eager hybrid repeats four layers of about 50
REPEATED = 0.7  # of all kernels belong to a layer that another one follows: 6 layers of 10 kernels have 0.8
NAME_LENGTH = 160  # characters; templates of C++ have thousands


def layer_of(spans: Sequence[Span]) -> list[dict[str, str | float]] | None:
    """Names and us of the kernels of one layer, in their order; None where nothing repeats.

    spans: of a prompt and of the steps behind it, sorted by start. The layer begins anywhere: it is a cycle. us is the
    median over all layers of what a kernel adds to the time of the one before.
    """
    steps = list(zip([name for name, _, _ in spans], added_times(spans), strict=True))[len(spans) // 2 :]
    names = [name for name, _ in steps]
    length = _period(names)
    start = next((at for at in range(len(names)) if length and _repeats(names, at, length)), None)
    if length is None or start is None:
        return None
    cycle, place, layers = names[start : start + length], start, []
    while place + length <= len(names):
        if found := names[place : place + length] == cycle:
            layers.append([us for _, us in steps[place : place + length]])
        place += length if found else 1
    medians = map(statistics.median, zip(*layers, strict=True))
    return [{"name": name[:NAME_LENGTH], "us": round(us, 3)} for name, us in zip(cycle, medians, strict=True)]


def added_times(spans: Sequence[Span]) -> list[float]:
    """Of each span, the time in which none of those before it ran. Their sum is the time in which at least one did."""
    added, reached = [], float("-inf")
    for _, start, end in spans:
        added.append(max(0.0, end - max(start, reached)))
        reached = max(reached, end)
    return added


def _period(names: Sequence[str]) -> int | None:
    for length in range(1, min(LONGEST_LAYER, len(names) // 2) + 1):
        equal = sum(name == later for name, later in zip(names, names[length:], strict=False))
        if equal >= REPEATED * (len(names) - length):
            return length
    return None


def _repeats(names: Sequence[str], start: int, length: int) -> bool:
    return names[start : start + length] == names[start + length : start + 2 * length]
