from __future__ import annotations

import subprocess
import sys
import time

import pytest

from serving_ops.bench_e2e.ops import runner
from serving_ops.bench_e2e.ops.machine_load import OtherLoad, busy_ticks
from serving_ops.bench_e2e.ops.round_robin import Samples


def test_busy_is_everything_but_idle_and_guests_counted_twice() -> None:
    assert busy_ticks("cpu  1 2 4 1000 2000 8 16 32 64 128\ncpu0 9 9 9 9 9 9 9 9 9 9\n") == 1 + 2 + 4 + 8 + 16 + 32


def test_another_program_is_seen() -> None:
    other = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        time.sleep(0.3)
        load = OtherLoad()
        time.sleep(0.5)
        cores = load.cores()
    finally:
        other.kill()
        other.wait()
    if cores is None:
        pytest.skip("no /proc/stat here")
    assert cores > 0.25


@pytest.mark.parametrize(("loads", "expected"), [([0.1], 1), ([0.9, 0.1], 2), ([0.5, 0.9], 1), ([None], 1)])
def test_a_disturbed_case_is_timed_again_and_the_calmer_one_kept(
    loads: list[float | None], expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    remaining = iter(loads)

    class Load:
        def cores(self) -> float | None:
            return next(remaining)

    monkeypatch.setattr(runner, "OtherLoad", Load)
    runs = iter(range(1, 4))
    samples: Samples
    samples, cores = runner.time_in_calm(lambda: {"run": [float(next(runs))]})
    assert samples == {"run": [float(expected)]}
    assert cores == loads[expected - 1]
    assert next(remaining, "none left") == "none left"
