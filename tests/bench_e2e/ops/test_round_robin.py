from __future__ import annotations

from serving_ops.bench_e2e.ops.round_robin import round_robin


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
