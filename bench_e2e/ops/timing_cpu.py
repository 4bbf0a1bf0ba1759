"""Time of one call on the CPU: windows of about a millisecond, contestants alternating."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import repeat
from time import perf_counter_ns

from serving_ops.bench_e2e.ops.contestants import Call
from serving_ops.bench_e2e.ops.round_robin import Samples, round_robin

WINDOW_NS = 1_000_000  # of calls between two clock reads; a read costs about 50 ns
MOST_ROUNDS = 30
FEWEST_ROUNDS = 5
BUDGET_NS = 1_200_000_000  # of one contestant at one size: eager takes 200 ms a call at 4096 x 4096


def time_calls(calls: Mapping[str, Call], *, quick: bool = False) -> Samples:
    """Microseconds a call, one figure a round."""
    share = 4 if quick else 1
    once = {name: _once_ns(call) for name, call in calls.items()}
    inner = {name: inner_calls(cost) for name, cost in once.items()}
    rounds = {name: rounds_for(cost, share) for name, cost in once.items()}
    return round_robin(lambda name: _window_us(calls[name], inner[name]), list(calls), rounds)


def inner_calls(cost_ns: float) -> int:
    return max(1, round(WINDOW_NS / cost_ns))


def rounds_for(cost_ns: float, share: int = 1) -> int:
    """As many as the budget pays for; a round runs one call more than it times."""
    round_ns = (inner_calls(cost_ns) + 1) * cost_ns
    return int(min(MOST_ROUNDS, max(FEWEST_ROUNDS, BUDGET_NS / share / round_ns)))


def _once_ns(call: Call) -> float:
    """A rough cost of one call: the fastest of three, more of them where the clock would be too coarse."""
    costs = []
    for _ in range(3):
        start = perf_counter_ns()
        call()
        costs.append(perf_counter_ns() - start)
    if min(costs) > WINDOW_NS // 10:
        return min(costs)
    return _window_us(call, 50) * 1000


def _window_us(call: Call, inner: int) -> float:
    call()  # whoever ran before has left its own data in the caches
    start = perf_counter_ns()
    for _ in repeat(None, inner):
        call()
    return (perf_counter_ns() - start) / inner / 1000
