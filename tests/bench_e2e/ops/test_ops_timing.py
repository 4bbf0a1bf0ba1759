from __future__ import annotations

import pytest

from serving_ops.bench_e2e.ops import timing_cuda
from serving_ops.bench_e2e.ops.timing_cpu import (
    BUDGET_NS,
    FEWEST_ROUNDS,
    MOST_ROUNDS,
    WINDOW_NS,
    inner_calls,
    rounds_for,
    time_calls,
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
    samples = time_calls({"a": lambda: sum(range(1000)), "b": lambda: sum(range(10_000))}, quick=True)
    assert 3 < sorted(samples["b"])[0] / sorted(samples["a"])[0] < 30
    assert 1 < sorted(samples["a"])[0] < 1000


@pytest.mark.parametrize("set_bytes", [8192, 2**20, 4 * 2**20, 16 * 2**20])
def test_small_sets_rotate_and_stay_in_the_l2(set_bytes: int) -> None:
    sets = timing_cuda.sets_for(set_bytes, L2)
    assert sets >= 2
    assert sets * set_bytes <= 0.6 * L2


@pytest.mark.parametrize("set_bytes", [40 * 2**20, 2**28, 2**32])
def test_large_sets_are_together_several_times_the_l2(set_bytes: int) -> None:
    sets = timing_cuda.sets_for(set_bytes, L2)
    assert sets >= 2
    assert sets * set_bytes >= 4 * L2


@pytest.mark.parametrize("bytes_moved", [8192, 2**24, 2**28, 2**34])
@pytest.mark.parametrize("sets", [2, 3, 8])
def test_a_graph_uses_every_set_equally_often(bytes_moved: int, sets: int) -> None:
    count = timing_cuda.calls_for(bytes_moved, sets)
    assert count >= sets
    assert count % sets == 0
    assert count <= timing_cuda.MOST_CALLS + sets


def test_host_calls_of_eager_fit_the_launch_queue() -> None:
    kernels_of_eager, launch_queue = 9, 1024
    assert timing_cuda.HOST_CALLS * kernels_of_eager < launch_queue
