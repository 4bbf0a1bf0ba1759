"""Alternating rounds: what the machine does meanwhile meets every contestant alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

Samples = dict[str, list[float]]  # contestant -> one figure a round


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
