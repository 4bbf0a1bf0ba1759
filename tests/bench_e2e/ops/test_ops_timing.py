from __future__ import annotations

import time

import pytest
import torch

from serving_ops.bench_e2e.ops import timing
from serving_ops.bench_e2e.ops.cases import FUSED_ADD, Case
from serving_ops.bench_e2e.ops.contestants import ours
from serving_ops.bench_e2e.ops.timing import FEWEST_ROUNDS, ROUNDS, round_robin, time_on_cpu

L2 = 60 * 2**20  # of an H200


def test_a_long_call_is_timed_alone_and_in_fewer_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "BUDGET_S", 0.02)
    calls: list[int] = []

    def long() -> None:
        calls.append(1)
        time.sleep(0.002)

    (samples,) = time_on_cpu({"long": long}).values()
    assert len(samples) == FEWEST_ROUNDS
    assert len(calls) == 3 + 2 * FEWEST_ROUNDS  # three to see what it costs, one in a round that is not timed


def test_a_short_call_runs_about_a_millisecond_in_every_round() -> None:
    calls: list[int] = []
    (samples,) = time_on_cpu({"short": lambda: calls.append(1)}).values()
    assert len(samples) == ROUNDS
    assert len(calls) > 100 * ROUNDS


def test_samples_are_microseconds_a_call() -> None:
    samples = time_on_cpu({"a": lambda: sum(range(1000)), "b": lambda: sum(range(10_000))})
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
def test_a_graph_goes_round_over_the_sets_at_least_once_and_has_no_more_calls_than_it_needs(
    bytes_moved: int, sets: int
) -> None:
    times = timing.times_for(bytes_moved, sets)
    assert times >= 1
    assert times * sets <= timing.MOST_CALLS + sets


def test_host_calls_of_eager_fit_the_launch_queue() -> None:
    kernels_of_eager, launch_queue = 9, 1024
    assert timing.HOST_CALLS * kernels_of_eager < launch_queue


def test_every_round_runs_everyone_and_starts_one_further_on() -> None:
    ran: list[str] = []

    def measure(name: str) -> float:
        ran.append(name)
        return float(len(ran))

    samples = round_robin(measure, "abc", 3)
    assert ran == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert samples == {"a": [1.0, 6.0, 8.0], "b": [2.0, 4.0, 9.0], "c": [3.0, 5.0, 7.0]}


def test_every_product_of_a_chain_is_followed_by_a_norm_of_its_activation() -> None:
    chain = timing.chains(Case("gemm", FUSED_ADD, (2, 64), dtype="float32"), "cpu")
    bare, calls = chain(None), chain(ours)
    assert len(bare) == timing.PRODUCTS
    assert len(calls) == 2 * timing.PRODUCTS
    for product, norm in zip(calls[::2], calls[1::2], strict=True):
        product()
        norm()
        target = product.keywords["out"]  # type: ignore[attr-defined]
        assert torch.allclose(target.square().mean(dim=1), torch.ones(2), atol=0.5)


def test_a_norm_between_products_takes_what_the_bare_chain_of_its_round_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    samples = {"ours": [3.0, 5.0], timing.BARE: [2.0, 3.5]}
    monkeypatch.setattr(timing, "time_graphs", lambda graphs, count: dict(samples))
    assert timing.time_between_products({}) == {"ours": [1.0, 1.5]}
