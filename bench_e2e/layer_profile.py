"""One layer of a model, kernel by kernel, found in a profile of decode steps: what the steps repeat most often."""

import statistics
from collections.abc import Sequence

import numpy

Span = tuple[str, float, float]
"""A kernel, or an operator on CPU: its name, start and end in us."""

LONGEST_LAYER = 400  # kernels; an eager hybrid repeats four layers of about 50
SAME_STEP = 0.99  # of all kernels are again at their place in the next step
NEARLY_BEST = 0.75  # as often as any length repeats: a step repeats more often than a layer, but not exactly
SAME_LAYER = 0.4  # in the next layer: on CPU 6 layers of 27 operators stand beside 90 of the step's own
NAME_LENGTH = 160  # characters; templates of C++ have thousands


def layer_of(spans: Sequence[Span]) -> list[dict[str, str | float]] | None:
    """Names and us of the kernels of one layer, in their order; None where nothing repeats.

    spans: of a prompt and of the steps behind it, sorted by start. The layer begins anywhere: it is a cycle. us is the
    median over all layers of what a kernel adds to the time of the one before.
    """
    steps = list(zip([name for name, _, _ in spans], added_times(spans), strict=True))[len(spans) // 2 :]
    names = [name for name, _ in steps]
    length, places = _period(names), range(len(names))
    start = next((at for at in places if names[at : at + length] == names[at + length : at + 2 * length]), None)
    if not length or start is None:
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


def _period(names: Sequence[str]) -> int:
    """Of the layers, or of the steps where a step repeats nothing; 0 where these do not repeat either."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    kernels = numpy.array([numbers[name] for name in names])
    share = {length: float((kernels[length:] == kernels[:-length]).mean()) for length in range(1, len(names) // 2 + 1)}
    step = next((length for length in share if share[length] >= SAME_STEP), None)
    longest = min(LONGEST_LAYER, (step or len(names)) // 2)
    shorter = [length for length in share if length <= longest]
    best = max((share[length] for length in shorter), default=0.0)
    layer = next((length for length in shorter if share[length] >= NEARLY_BEST * best), None)
    found = layer if layer and share[layer] >= SAME_LAYER else step
    return found if found and found <= LONGEST_LAYER else 0
