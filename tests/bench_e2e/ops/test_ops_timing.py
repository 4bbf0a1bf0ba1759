from __future__ import annotations

import pytest

from serving_ops.bench_e2e.ops import timing
from serving_ops.bench_e2e.ops.timing import (
    BUDGET_NS,
    FEWEST_ROUNDS,
    MOST_ROUNDS,
    WINDOW_NS,
    inner_calls,
    round_robin,
    rounds_for,
    time_on_cpu,
)

L2 = 60 * 2**20  # of an H200


@pytest.mark.parametrize("cost_ns", [1_000, 50_000, 400_000])
def test_a_window_of_short_calls_lasts_about_a_millisecond(cost_ns: int) -> None:
    assert 0.5 * WINDOW_NS <= inner_calls(cost_ns) * cost_ns <= 1.5 * WINDOW_NS


def test_a_long_call_is_timed_alone_and_in_fewer_rounds() -> None:
    eager_at_4096_rows_ns = 190_000_000
    assert inner_calls(eager_at_4096_rows_ns) == 1
    assert rounds_for(eager_at_4096_rows_ns) == FEWEST_ROUNDS
    assert rounds_for(2_000) == MOST_ROUNDS


def test_rounds_stay_within_the_budget_where_the_fewest_allow_it() -> None:
    cost_ns = 30_000_000
    assert rounds_for(cost_ns) * 2 * cost_ns <= BUDGET_NS


def test_samples_are_microseconds_a_call() -> None:
    samples = time_on_cpu({"a": lambda: sum(range(1000)), "b": lambda: sum(range(10_000))}, quick=True)
    assert 3 < sorted(samples["b"])[0] / sorted(samples["a"])[0] < 30
    assert 1 < sorted(samples["a"])[0] < 1000


@pytest.mark.parametrize("set_bytes", [8192, 2**20, 4 * 2**20, 16 * 2**20])
def test_small_sets_rotate_and_stay_in_the_l2(set_bytes: int) -> None:
    sets = timing.sets_for(set_bytes, L2)
    assert sets >= 2
    assert sets * set_bytes <= 0.6 * L2


@pytest.mark.parametrize("set_bytes", [40 * 2**20, 2**28, 2**32])
def test_large_sets_are_together_several_times_the_l2(set_bytes: int) -> None:
    sets = timing.sets_for(set_bytes, L2)
    assert sets >= 2
    assert sets * set_bytes >= 4 * L2


@pytest.mark.parametrize("bytes_moved", [8192, 2**24, 2**28, 2**34])
@pytest.mark.parametrize("sets", [2, 3, 8])
def test_a_graph_uses_every_set_equally_often(bytes_moved: int, sets: int) -> None:
    count = timing.calls_for(bytes_moved, sets)
    assert count >= sets
    assert count % sets == 0
    assert count <= timing.MOST_CALLS + sets


def test_host_calls_of_eager_fit_the_launch_queue() -> None:
    kernels_of_eager, launch_queue = 9, 1024
    assert timing.HOST_CALLS * kernels_of_eager < launch_queue


def test_every_round_runs_everyone_and_starts_one_further_on() -> None:
    ran: list[str] = []

    def measure(name: str) -> float:
        ran.append(name)
        return float(len(ran))

    samples = round_robin(measure, {"a": 3, "b": 3, "c": 3})
    assert ran == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert samples == {"a": [1.0, 6.0, 8.0], "b": [2.0, 4.0, 9.0], "c": [3.0, 5.0, 7.0]}


def test_a_slow_contestant_stops_after_its_own_rounds() -> None:
    samples = round_robin(lambda name: 1.0, {"fast": 5, "slow": 2})
    assert (len(samples["fast"]), len(samples["slow"])) == (5, 2)


def test_the_baseline_is_measured_before_every_round() -> None:
    order: list[str] = []

    def measure(name: str) -> float:
        order.append(name)
        return 0.0

    round_robin(measure, {"a": 2}, before_round=lambda: order.append("bare"))
    assert order == ["bare", "a", "bare", "a"]
