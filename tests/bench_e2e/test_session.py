from __future__ import annotations

import time

import pytest

from serving_ops.bench_e2e.session import order


def test_every_round_asks_each_and_who_went_first_goes_last_in_the_next() -> None:
    assert list(order(["a", "b"], 3)) == [(1, "a"), (1, "b"), (2, "b"), (2, "a"), (3, "a"), (3, "b")]


def test_a_pause_lies_before_each_turn_of_another(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    seen = [(name, len(pauses)) for _, name in order(["a", "b"], 2, pause=1.5)]
    assert seen == [("a", 0), ("b", 1), ("b", 1), ("a", 2)]
    assert set(pauses) == {1.5}
