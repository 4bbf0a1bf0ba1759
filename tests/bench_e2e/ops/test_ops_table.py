from __future__ import annotations

from typing import Any

import pytest

from serving_ops.bench_e2e.ops import ops_table


def _result(shape: list[int], times: dict[str, float], **more: Any) -> dict[str, Any]:
    record = {
        "regime": "prefill",
        "op": "rms_norm",
        "shape": shape,
        "dtype": "bfloat16",
        "layout": "contiguous",
        "threads": None,
        "bytes_moved": 400_000_000,
        "contestants": ["serving_ops", "eager", "Quack", "Liger"],
        "times": {name: {"median_us": time} for name, time in times.items()},
        "ratios": {name: {"median": time / times["serving_ops"]} for name, time in times.items()},
        "problems": {},
    }
    return {**record, **more}


@pytest.fixture
def report() -> dict[str, Any]:
    fast = _result([16384, 4096], {"serving_ops": 100.0, "eager": 50.0, "Quack": 110.0, "Liger": 120.0})
    slow = _result(
        [8192, 8192],
        {"serving_ops": 125.0, "eager": 900.0, "Quack": 120.0},
        problems={"Liger": "wrong: result is off by 5.0e-01 of its norm"},
    )
    return {
        "kind": "ops",
        "device": "cuda",
        "date": "2026-11-20 23:00 UTC",
        "command": "python -m serving_ops.bench_e2e --ops --peers",
        "versions": {"torch": "2.11.0"},
        "hardware": {"cpu": "Some CPU", "cores": 16, "gpu": "Some GPU"},
        "contestants": {"serving_ops": "0.1.0", "Quack": "0.6.5"},
        "copy_tb_s": 4.2,
        "results": [fast, slow],
    }


def test_markdown_shows_every_size_with_the_fastest_in_bold(report: dict[str, Any]) -> None:
    lines = ops_table.markdown(report).splitlines()
    assert "| 8192 x 8192 | 125.0 | 900.0 | **120.0** | wrong | 0.96 (Quack) | 3.20 | 76% |" in lines
    assert any(line.startswith("| 16384 x 4096 | 100.0 |") for line in lines)


def test_the_best_peer_is_never_eager_or_ours(report: dict[str, Any]) -> None:
    name, ratio = ops_table.best_peer(report["results"][0]) or ("", 0.0)
    assert name == "Quack"
    assert ratio == pytest.approx(1.1)


def test_bandwidth_is_bytes_moved_over_time(report: dict[str, Any]) -> None:
    assert ops_table.tb_s(report["results"][0], "serving_ops") == pytest.approx(4.0)


def test_markdown_says_machine_versions_and_command(report: dict[str, Any]) -> None:
    first = ops_table.markdown(report).splitlines()[0]
    for word in ("Some GPU", "Quack 0.6.5", "torch 2.11.0", "4.20 TB/s", report["command"]):
        assert word in first


def test_a_contestant_without_the_op_has_no_column(report: dict[str, Any]) -> None:
    for result in report["results"]:
        result["problems"]["Liger"] = "unsupported: no gated norm"
        result["times"].pop("Liger", None)
    assert "Liger" not in ops_table.markdown(report).splitlines()[4]


def test_ours_failing_still_gives_a_table(report: dict[str, Any]) -> None:
    result = report["results"][1]
    result["times"] = {"Quack": {"median_us": 120.0}}
    result["ratios"] = {}
    result["problems"] = {"serving_ops": "failed: RuntimeError: no"}
    assert "| 8192 x 8192 | failed | - | **120.0** | - | - | - | - |" in ops_table.markdown(report)


@pytest.mark.parametrize(("us", "cell"), [(1.274, "1.27"), (43.44, "43.4"), (2309.4, "2309")])
def test_times_have_about_three_digits(us: float, cell: str) -> None:
    assert ops_table.format_us(us) == cell


def test_the_summary_has_a_line_a_regime_and_op_with_what_was_lost(report: dict[str, Any]) -> None:
    lines = ops_table.summary([report]).splitlines()
    assert len(lines) == 3
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells == ["`rms_norm`, prefill", "2", "1", "1.03", "0.96 (Quack, 8192 x 8192)", "76% to 95%"]


def test_the_summary_of_a_single_size_gives_its_time(report: dict[str, Any]) -> None:
    host = _result([1, 4096], {"serving_ops": 4.0, "Quack": 6.0}, regime="host")
    assert "| `rms_norm`, host time of an eager call: 4.00 us | 1 | 1 | 1.50 | 1.50 (Quack) |  |" in ops_table.summary(
        [report | {"results": [host]}]
    )
