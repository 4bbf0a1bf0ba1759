"""The result of engines in turns: its ratio, its JSON, its table."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from serving_ops.bench_e2e.environment import Hardware
from serving_ops.bench_e2e.saving import compact
from serving_ops.bench_e2e.turns import table
from serving_ops.bench_e2e.turns.load import Load, device_step, labels, tpot, ttft
from serving_ops.bench_e2e.turns.result import EngineRun, TurnsResult, load_result

LOAD = Load(batch_sizes=(1, 16), prompt_lens=(512,), decode_steps=32)


def _engine(*times: float, line: str | None = None) -> EngineRun:
    return EngineRun(line, [dict.fromkeys((tpot(1), ttft(512)), time) for time in times])


@pytest.fixture
def result() -> TurnsResult:
    """Two pairs, in which serving_ops takes 0.8 and 0.9 of native's time; one turn was disturbed."""
    on = "serving_ops 0.1.0 (auto, cpu): on for 5 of 5 RMSNorm"
    return TurnsResult(
        name="sample",
        date="2026-11-21T12:00:00+00:00",
        command="python -m serving_ops.bench_e2e --turns",
        engine_options={"enforce_eager": True},
        engine="vllm",
        model="preset dense",
        device="cpu",
        eager=True,
        load=LOAD,
        versions={"serving_ops": "0.1.0", "vllm": "0.32.0+cpu", "torch": "2.13.0+cpu"},
        hardware=Hardware(cpu="Some CPU", cores=2, memory_gib=23.5, gpu=None),
        engines={
            "native": [_engine(10, 10, 10), _engine(20, 20, 20)],
            "serving_ops": [_engine(8, 8, 80, line=on), _engine(18, 18, 18, line=on)],
        },
    )


def test_the_ratio_pairs_engines_and_one_disturbed_turn_does_not_count(result: TurnsResult) -> None:
    ratio = result.ratio(tpot(1))
    assert ratio.ratio == pytest.approx((0.8 * 0.9) ** 0.5)
    assert ratio.rounds == 2
    assert ratio.low is not None
    assert ratio.low < 0.8 < 0.9 < ratio.high


def test_a_result_reads_back_as_it_was_written(result: TurnsResult, tmp_path: Path) -> None:
    path = tmp_path / "sample.json"
    path.write_text(compact(result.to_json()))
    assert load_result(path) == result


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"kind": "turns", "schema": 99}', '{"kind": "rounds", "schema": 1}'])
def test_a_file_that_is_no_result_is_named_in_the_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json is no result"):
        load_result(path)


def test_the_table_has_a_line_for_each_figure_that_was_measured(result: TurnsResult) -> None:
    text = table.markdown(result)
    assert "| TPOT, batch 1 | 15.00 [10.00-20.00] | 13.00 [8.00-18.00] | 0.849" in text
    assert "| TTFT, 512 tokens |" in text
    assert "batch 16" not in text
    assert "Some CPU, 2 cores, 2026-11-21" in text


def test_another_variant_of_an_older_result_is_a_column(result: TurnsResult) -> None:
    assert "no norms" not in table.markdown(result)
    engines = {**result.engines, "no norms": [_engine(7), _engine(14)]}
    text = table.markdown(dataclasses.replace(result, engines=engines))
    assert "| no norms / native |" in text
    assert "| 0.700 [0.700-0.700] |" in text


def test_a_summary_has_a_line_a_result_and_a_column_a_figure(result: TurnsResult, tmp_path: Path) -> None:
    only_first_token = {variant: [EngineRun(None, [{ttft(512): 10.0}])] * 2 for variant in result.engines}
    other = dataclasses.replace(result, command="VLLM_BATCH_INVARIANT=1 python", engines=only_first_token)
    header, _, first, second = table.summary([result, other]).splitlines()
    assert header == "| serving_ops / native | TPOT, batch 1 | TTFT, 512 tokens |"
    assert first.startswith("| preset dense, eager | 0.849 [")
    assert second == "| preset dense, eager, `VLLM_BATCH_INVARIANT=1` |  | 1.000 [1.000-1.000] |"


def test_json_says_how_the_ratios_came_about(result: TurnsResult) -> None:
    plain = result.to_json()
    assert plain["ratios"]["serving_ops"][tpot(1)]["rounds"] == 2
    assert "medians over the rounds" in plain["ratio_method"]


def test_labels_name_every_figure_of_a_load_in_the_tables_order() -> None:
    names = [tpot(1), device_step(1), tpot(16), device_step(16), ttft(512)]
    assert list(labels(LOAD)) == names


def test_a_load_asks_for_room_for_its_longest_request() -> None:
    assert LOAD.context == 513
    assert dataclasses.replace(LOAD, decode_steps=1000).context == 1129


def test_sglangs_tables_name_its_version_and_what_it_does_instead_of_compiling(result: TurnsResult) -> None:
    served = dataclasses.replace(
        result,
        engine="sglang",
        eager=False,
        versions={**result.versions, "sglang": "0.5.17"},
        command="python -m serving_ops.bench_e2e --turns --engine-args '{\"enable_deterministic_inference\": true}'",
    )
    assert table.heading(served).startswith("**preset dense, CUDA graphs, `deterministic`**: sglang 0.5.17, torch ")
