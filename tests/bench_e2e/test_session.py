from __future__ import annotations

from serving_ops.bench_e2e.session import order


def test_every_round_asks_each_and_who_went_first_goes_last_in_the_next() -> None:
    assert list(order(["a", "b"], 3)) == [(1, "a"), (1, "b"), (2, "b"), (2, "a"), (3, "a"), (3, "b")]
