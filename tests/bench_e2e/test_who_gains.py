"""Who gains: the README has what the committed results say, and no ratio whose interval includes 1."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from serving_ops.bench_e2e import gains, result_file, table
from serving_ops.bench_e2e.comparison import Comparison
from serving_ops.bench_e2e.step_engine import HOST

ROOT = Path(__file__).parents[2]
RESULTS = sorted((ROOT / "bench_e2e" / "results").glob("*.json"))
FIGURES = "tpot_ms_batch_1", "decode_step_device_ms_batch_1", "ttft_ms_prompt_512", "ttft_ms_prompt_8192", HOST
LABELS = {figure: figure for figure in FIGURES}


def _result(base: Comparison, times: dict[str, float], pairs: int = 5, **run: object) -> Comparison:
    """serving_ops takes these shares of native's time, give or take a percent."""
    spread = [1 + 0.01 * (place % 3 - 1) for place in range(pairs)]
    measured = {
        "native": [dict.fromkeys(times, 100.0) for _ in spread],
        "serving_ops": [{figure: 100 * share * noise for figure, share in times.items()} for noise in spread],
    }
    lines = {"native": [None], "serving_ops": base.plugin_lines["serving_ops"]}
    return Comparison({**base.run, "kind": "step", **run}, LABELS, measured, lines)


def _gains(*results: Comparison) -> str:
    return gains.markdown({Path(f"results/{place}.json"): of.to_json() for place, of in enumerate(results)}, Path("."))


def test_the_readme_says_what_the_committed_results_say() -> None:
    readme = (ROOT / "README.md").read_text()
    made = gains.markdown({path: result_file.read(path) for path in RESULTS}, ROOT)
    command = "python -m serving_ops.bench_e2e table --gains bench_e2e/results/*.json --readme README.md"
    assert table.fill(readme, {"gains": made}) == readme, f"run: {command}"


def test_a_ratio_whose_interval_includes_1_is_left_out(result: Comparison) -> None:
    text = _gains(_result(result, {"tpot_ms_batch_1": 0.9, "ttft_ms_prompt_512": 1.001}))
    (line,) = re.findall(r"^\| vLLM .*$", text, re.MULTILINE)
    assert line.startswith("| vLLM 0.32.0, 2 CPU cores, eager: [dense](results/0.json) |  | 0.")
    assert line.endswith("] |  |")


def test_of_several_prompts_the_longest_that_gains_is_shown(result: Comparison) -> None:
    text = _gains(_result(result, {"tpot_ms_batch_1": 0.9, "ttft_ms_prompt_512": 0.8, "ttft_ms_prompt_8192": 0.9}))
    assert "8192 tokens" in text
    assert "512 tokens" not in text


def test_a_slow_host_is_no_loss_of_ours(result: Comparison) -> None:
    assert "Slower" not in _gains(_result(result, {"tpot_ms_batch_1": 0.9, HOST: 1.5}))


def test_what_gains_nothing_and_what_is_slower_is_said_by_name(result: Comparison) -> None:
    even = _result(result, {"tpot_ms_batch_1": 1.001})
    slow = _result(result, {"tpot_ms_batch_1": 1.1}, model="preset dense-fp8-static")
    text = " ".join(_gains(even, slow).split())
    assert "Nothing gained: vLLM 0.32.0, 2 CPU cores, eager: dense." in text
    assert "Slower: vLLM 0.32.0, 2 CPU cores, eager: dense (FP8 static) (tpot_ms_batch_1: 1.098 [" in text


def test_what_gains_in_one_figure_is_said_to_be_slower_in_another(result: Comparison) -> None:
    text = " ".join(_gains(_result(result, {"tpot_ms_batch_1": 0.9, "ttft_ms_prompt_512": 1.1})).split())
    assert "[dense](results/0.json) | | 0." in text
    assert re.search(r"Slower: vLLM 0.32.0, 2 CPU cores, eager: dense \(ttft_ms_prompt_512: 1\.\d+ \[", text)


def test_a_table_has_eight_lines_and_the_other_gains_stand_below_it_with_their_column(result: Comparison) -> None:
    models = {f"model-{place}": 0.5 + 0.04 * place for place in range(10)}
    text = _gains(*(_result(result, {"tpot_ms_batch_1": share}, model=name) for name, share in models.items()))
    assert re.findall(r"\[(model-\d)\]", text) == list(models)[:8]
    listed = r"Other gains: vLLM 0.32.0, 2 CPU cores, eager: model-8 0.8\d+ of the TPOT, model-9 0.8\d+ of the TPOT\."
    assert re.search(listed, text)


def test_an_engines_default_on_a_gpu_is_in_the_table_though_others_gain_more(result: Comparison) -> None:
    on_gpu = {"device": "cuda", "mode": "compiled", "hardware": {"gpu": "NVIDIA H200", "cores": 2}}
    models = {f"model-{place}": 0.5 + 0.04 * place for place in range(8)} | {"preset dense": 0.95}
    runs = [_result(result, {"tpot_ms_batch_1": share}, model=name, **on_gpu) for name, share in models.items()]
    assert re.findall(r"\[([\w-]+)\]\(", _gains(*runs)) == [*list(models)[:7], "dense"]
    two = on_gpu | {"engine_options": {"tensor_parallel_size": 2}}
    runs[-1] = _result(result, {"tpot_ms_batch_1": 0.95}, model="preset dense", **two)
    assert "Other gains: vLLM 0.32.0, 2 x H200, compiled: dense 0.9" in " ".join(_gains(*runs).split())


def test_other_modes_have_the_lines_that_default_modes_leave(result: Comparison) -> None:
    on_gpu = {"device": "cuda", "mode": "compiled", "hardware": {"gpu": "NVIDIA H200", "cores": 2}}
    models = {f"model-{place}": 0.5 + 0.04 * place for place in range(9)}
    runs = [_result(result, {"tpot_ms_batch_1": share}, model=name, **on_gpu) for name, share in models.items()]
    runs[0] = dataclasses.replace(runs[0], run=runs[0].run | {"mode": "eager"})
    assert re.findall(r"\[(model-\d)\]", _gains(*runs)) == list(models)[1:]
    assert re.findall(r"\[(model-\d)\]", _gains(*runs[:8])) == list(models)[:8]


def test_the_gpus_time_decides_the_order_where_there_is_one(result: Comparison) -> None:
    by_host = _result(result, {"tpot_ms_batch_1": 0.7, "decode_step_device_ms_batch_1": 0.9}, model="model-0")
    by_gpu = _result(result, {"tpot_ms_batch_1": 0.95, "decode_step_device_ms_batch_1": 0.8}, model="model-1")
    assert re.findall(r"\[(model-\d)\]", _gains(by_host, by_gpu)) == ["model-1", "model-0"]


def test_the_newest_result_with_an_interval_counts(result: Comparison) -> None:
    def shown(*dates_and_pairs: tuple[str, int]) -> str:
        runs = [
            _result(result, {"tpot_ms_batch_1": 0.9}, pairs, date=f"{date}T12:00:00+00:00")
            for date, pairs in dates_and_pairs
        ]
        (found,) = re.findall(r"results/(\d).json", _gains(*runs))
        return dates_and_pairs[int(found)][0]

    assert shown(("2026-11-20", 5), ("2026-11-21", 7), ("2026-11-19", 9)) == "2026-11-21"
    assert shown(("2026-11-20", 5), ("2026-11-21", 4)) == "2026-11-20"


def test_too_few_pairs_a_plugin_that_was_off_and_other_benches_say_nothing(result: Comparison) -> None:
    few = _result(result, {"tpot_ms_batch_1": 0.9}, pairs=4)
    off = dataclasses.replace(_result(result, {"tpot_ms_batch_1": 0.9}), plugin_lines={"serving_ops": [None]})
    other = dataclasses.replace(result, run={**result.run, "kind": "training-steps"})
    text = _gains(few, off, other)
    assert "vLLM" not in text


def test_the_table_goes_between_its_markers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "README.md"
    page.write_text("before\n<!-- table:gains -->\nold\n<!-- /table -->\nafter\n")
    assert table.main(["--gains", *map(str, RESULTS), "--readme", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- table:gains -->\n| engine, model |")
    assert text.endswith("<!-- /table -->\nafter\n")
    (link, *_) = re.findall(r"\]\((\S+\.json)\)", text)
    assert (tmp_path / link).resolve().exists()
