from __future__ import annotations

import pytest

from serving_ops.bench_e2e.ops.rounds import ratio_to, round_robin, summarize


def test_every_round_runs_everyone_and_starts_one_further_on() -> None:
    ran: list[str] = []

    def measure(name: str) -> float:
        ran.append(name)
        return float(len(ran))

    samples = round_robin(measure, ["a", "b", "c"], {"a": 3, "b": 3, "c": 3})
    assert ran == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert samples == {"a": [1.0, 6.0, 8.0], "b": [2.0, 4.0, 9.0], "c": [3.0, 5.0, 7.0]}


def test_a_slow_contestant_stops_after_its_own_rounds() -> None:
    samples = round_robin(lambda name: 1.0, ["fast", "slow"], {"fast": 5, "slow": 2})
    assert (len(samples["fast"]), len(samples["slow"])) == (5, 2)


def test_the_baseline_is_measured_before_every_round() -> None:
    order: list[str] = []

    def measure(name: str) -> float:
        order.append(name)
        return 0.0

    round_robin(measure, ["a"], {"a": 2}, before_round=lambda: order.append("bare"))
    assert order == ["bare", "a", "bare", "a"]


def test_one_slow_round_does_not_move_the_median_or_the_ratio() -> None:
    ours, other = [1.0, 1.0, 1.0, 1.0, 50.0], [2.0, 2.0, 90.0, 2.0, 2.0]
    assert summarize(ours).median == 1.0
    ratio = ratio_to(ours, other)
    assert ratio is not None
    assert ratio.median == 2.0


def test_quartiles_are_those_of_the_samples() -> None:
    found = summarize([5.0, 1.0, 4.0, 2.0, 3.0])
    assert (found.p25, found.median, found.p75, found.best, found.rounds) == (2.0, 3.0, 4.0, 1.0, 5)


def test_ratio_pairs_only_the_rounds_that_both_ran() -> None:
    ratio = ratio_to([1.0, 2.0, 4.0, 8.0], [3.0, 6.0])
    assert ratio is not None
    assert (ratio.median, ratio.rounds) == (3.0, 2)


def test_ratio_to_a_time_that_is_not_positive_is_none() -> None:
    # What a norm adds between two products is a difference: it can come out below zero.
    assert ratio_to([-0.1], [1.0]) is None


def test_a_single_round_has_no_spread() -> None:
    assert summarize([2.5]).p25 == summarize([2.5]).p75 == pytest.approx(2.5)
