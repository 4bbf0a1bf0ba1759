from __future__ import annotations

import math
import statistics

import pytest

from serving_ops.bench_e2e.stats import T_95, median_ratio, paired_ratio, quartiles, spread


def test_interval_of_five_rounds_is_the_hand_computed_one() -> None:
    # Logarithms 0.1, 0.2, 0.3, 0.4, 0.5: mean 0.3, variance 0.1 / 4, reach 2.776 * sqrt(0.025 / 5).
    found = paired_ratio([2.0] * 5, [2.0 * math.exp(step / 10) for step in range(1, 6)])
    reach = 2.776 * math.sqrt(0.005)
    assert found.ratio == pytest.approx(math.exp(0.3))
    assert (found.low, found.high) == (pytest.approx(math.exp(0.3 - reach)), pytest.approx(math.exp(0.3 + reach)))
    assert found.pairs == 5


def test_a_slow_round_that_hits_both_variants_does_not_widen_the_interval() -> None:
    found = paired_ratio([10.0, 30.0, 10.0, 10.0, 20.0], [9.0, 27.0, 9.0, 9.0, 18.0])
    assert found.low == pytest.approx(0.9)
    assert found.high == pytest.approx(0.9)


def test_swapping_the_variants_inverts_ratio_and_interval() -> None:
    one, other = [3.0, 4.0, 3.0, 4.0, 3.0], [2.0, 5.0, 2.0, 5.0, 2.0]
    there, back = paired_ratio(one, other), paired_ratio(other, one)
    assert there.low is not None
    assert back.high is not None
    assert there.ratio == pytest.approx(1 / back.ratio)
    assert there.low == pytest.approx(1 / back.high)


@pytest.mark.parametrize("pairs", [1, 4])
def test_too_few_pairs_have_no_interval(pairs: int) -> None:
    found = paired_ratio([2.0] * pairs, [1.0] * pairs)
    assert (found.ratio, found.low, found.high, found.pairs) == (pytest.approx(0.5), None, None, pairs)


@pytest.mark.parametrize(("baseline", "other"), [([], []), ([1.0], [1.0, 2.0])])
def test_rounds_that_do_not_pair_up_are_refused(baseline: list[float], other: list[float]) -> None:
    with pytest.raises(ValueError, match="pairs"):
        paired_ratio(baseline, other)


@pytest.mark.parametrize(("baseline", "other"), [([0.0], [1.0]), ([1.0], [-1.0])])
def test_times_that_are_not_positive_make_no_ratio(baseline: list[float], other: list[float]) -> None:
    assert paired_ratio(baseline, other) is None


def test_quantile_falls_with_the_degrees_of_freedom_and_never_below_the_normal_one() -> None:
    assert list(T_95) == sorted(T_95, reverse=True)
    assert T_95[-1] > 1.96
    noisy = [math.exp((-1) ** pair) for pair in range(100)]
    reach = T_95[-1] * statistics.stdev(map(math.log, noisy)) / 10
    assert paired_ratio([1.0] * 100, noisy).high == pytest.approx(math.exp(reach))


def test_one_slow_round_does_not_move_the_median_or_the_ratio() -> None:
    ours, other = [1.0, 1.0, 1.0, 1.0, 50.0], [2.0, 2.0, 90.0, 2.0, 2.0]
    assert quartiles(ours)["median_us"] == 1.0
    assert median_ratio(ours, other) == 2.0


def test_quartiles_are_those_of_the_samples() -> None:
    assert quartiles([5.0, 1.0, 4.0, 2.0, 3.0]) == {"median_us": 3.0, "p25_us": 2.0, "p75_us": 4.0, "rounds": 5}


def test_ratio_to_a_time_that_is_not_positive_is_none() -> None:
    # What a norm adds between two products is a difference: it can come out below zero.
    assert median_ratio([-0.1], [1.0]) is None


def test_a_spread_is_median_and_extremes() -> None:
    assert spread([3.0, 1.0, 10.0, 2.0]) == "2.50 [1.00-10.00]"
    assert spread([3.0, 3.0]) == "3.00"
