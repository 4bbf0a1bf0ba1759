"""Runs beside each other on one machine."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from serving_ops.bench_e2e.step import starting
from serving_ops.bench_e2e.step_engine import turn_to_warm_up

SECONDS = 30


def test_none_measures_while_another_starts_or_measures(tmp_path: Path) -> None:
    path, order = tmp_path / "lock", []
    first_started, second_starts = threading.Event(), threading.Event()

    def second() -> None:
        with starting(path) as measure_alone:
            second_starts.set()
            assert first_started.wait(SECONDS)
            order.append("second is up")
            measure_alone()
            order.append("second measures")

    other = threading.Thread(target=second)
    with starting(path) as measure_alone:
        other.start()
        assert second_starts.wait(SECONDS)
        threading.Timer(0.2, first_started.set).start()
        measure_alone()
        order.append("a run measures")
        other.join(0.2)
    other.join(SECONDS)
    assert order in (
        ["second is up", "a run measures", "second measures"],
        ["second is up", "second measures", "a run measures"],
    )
    assert not other.is_alive()


def test_a_run_that_starts_later_waits_until_the_first_has_measured(tmp_path: Path) -> None:
    path, order = tmp_path / "lock", []

    def late() -> None:
        with starting(path):
            order.append("late starts")

    with starting(path) as measure_alone:
        measure_alone()
        other = threading.Thread(target=late)
        other.start()
        other.join(0.2)
        order.append("measured")
    other.join(SECONDS)
    assert order == ["measured", "late starts"]


@pytest.mark.parametrize(("gpus", "order"), [(1, ["second", "first"]), (4, ["first", "second"])])
def test_engines_on_several_gpus_warm_up_one_after_the_other(tmp_path: Path, gpus: int, order: list[str]) -> None:
    warmed_up: list[str] = []
    second_is_through = threading.Event()

    def second() -> None:
        with turn_to_warm_up(tmp_path / "lock", gpus):
            warmed_up.append("second")
        second_is_through.set()

    other = threading.Thread(target=second)
    with turn_to_warm_up(tmp_path / "lock", gpus):
        other.start()
        second_is_through.wait(0.5)
        warmed_up.append("first")
    other.join(SECONDS)
    assert warmed_up == order
