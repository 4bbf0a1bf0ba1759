"""A comparison of variants: its ratios, its JSON, its tables and its picture."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from serving_ops.bench_e2e import cli, comparison
from serving_ops.bench_e2e.comparison import Comparison, is_active, startup_line
from serving_ops.bench_e2e.plot import write_plot
from serving_ops.bench_e2e.result_file import OF_EVERY_RESULT, compact
from serving_ops.bench_e2e.step_engine import HOST, StepLoad, device_step, tpot, ttft
from serving_ops.integrations.common.norm_layers import describe

ON = "serving_ops 0.1.0 (auto, cuda:0): on for 13 of 13 RMSNorm; prewarmed 2"
RESULTS = Path(__file__).parents[2] / "bench_e2e" / "results"


def without_plugin(result: Comparison) -> Comparison:
    return dataclasses.replace(result, plugin_lines={"native": [None], "serving_ops": [None]})


def more_pairs(result: Comparison) -> Comparison:
    return dataclasses.replace(result, pairs={variant: 3 * entries for variant, entries in result.pairs.items()})


def saved(result: Comparison, folder: Path, name: str = "sample") -> Path:
    path = folder / f"{name}.json"
    path.write_text(compact(result.to_json()))
    return path


def test_a_result_reads_back_as_it_was_written(result: Comparison, tmp_path: Path) -> None:
    assert comparison.load(saved(result, tmp_path)) == result


def test_an_interval_needs_five_pairs(result: Comparison) -> None:
    few, enough = result.ratio("median_tpot_ms"), more_pairs(result).ratio("median_tpot_ms")
    assert few.ratio == enough.ratio == pytest.approx((0.8 * 0.9) ** 0.5)
    assert (few.low, few.high, enough.pairs) == (None, None, 6)
    assert enough.low < few.ratio < enough.high
    assert "| 0.849 [2 pairs] |" in comparison.markdown(result.to_json())
    assert "| 0.849 [0." in comparison.markdown(more_pairs(result).to_json())


@pytest.mark.parametrize("text", ["", "[]", "3", "{}", json.dumps(dict.fromkeys(OF_EVERY_RESULT, 1))])
def test_a_file_that_is_no_result_is_named_in_the_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json is no result"):
        comparison.load(path)


def test_a_result_of_ops_is_no_comparison() -> None:
    with pytest.raises(ValueError, match=r"ops-cpu\.json compares no variants"):
        comparison.load(RESULTS / "ops-cpu.json")


def test_terminal_table_fits_into_80_columns_and_shouts_when_inactive(result: Comparison) -> None:
    console = Console(width=80, record=True)
    more_pairs(result).show(console)
    shown = console.export_text()
    assert "85.00 [80.00-90.00]" in shown
    assert "…" not in shown
    assert "not active" not in shown
    without_plugin(result).show(console)
    assert "serving_ops was not active" in console.export_text()


def test_plot_is_a_png_beside_its_result(
    result: Comparison, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["plot", str(saved(result, tmp_path)), str(RESULTS / "nowhere.json")][:2]) == 0
    assert (tmp_path / "sample.png").read_bytes().startswith(b"\x89PNG\r\n")


@pytest.mark.parametrize("name", ["turns-h200", "steps-h200-dense"])
def test_every_comparison_has_a_picture(name: str, tmp_path: Path) -> None:
    assert write_plot(comparison.load(RESULTS / f"{name}.json"), tmp_path / "x.png").stat().st_size > 1000


def test_markdown_table_has_a_row_for_each_figure(result: Comparison) -> None:
    text = comparison.markdown(result.to_json())
    rows = [line for line in text.splitlines() if line.startswith("| T")]
    assert [row.split("|")[1].strip() for row in rows] == [
        *("TTFT median", "TTFT p90", "TTFT p99"),
        *("TPOT median", "TPOT p90", "TPOT p99"),
    ]
    assert "85.00 [80.00-90.00]" in rows[0]
    assert "Some CPU, 2 cores, 2026-11-20" in text
    assert result.run["command"] in text
    assert "not active" not in text
    assert "not active" in comparison.markdown(without_plugin(result).to_json())


def test_another_variant_of_an_older_result_is_a_column(result: Comparison) -> None:
    pairs = {**result.pairs, "no norms": [{"median_tpot_ms": 70.0}] * 2}
    only = dataclasses.replace(result, pairs=pairs, labels={"median_tpot_ms": "TPOT median"})
    assert "| no norms / native |" in comparison.markdown(only.to_json())
    assert "no norms" not in comparison.markdown(result.to_json())


def test_a_summary_has_a_line_a_result_and_a_column_a_figure(result: Comparison) -> None:
    figures = {"tpot": "TPOT, batch 1", "ttft": "TTFT, 512 tokens"}
    pairs = {"native": [{"tpot": 10.0, "ttft": 10.0}] * 5, "serving_ops": [{"tpot": 8.0, "ttft": 9.0}] * 5}
    both = dataclasses.replace(result, labels=figures, pairs=pairs)
    ttft_alone = {variant: [{"ttft": entry["ttft"]} for entry in entries] for variant, entries in pairs.items()}
    run = result.run | {"command": "VLLM_BATCH_INVARIANT=1 python"}
    other = dataclasses.replace(both, pairs=ttft_alone, run=run)
    lines = comparison.summary([both.to_json(), other.to_json()]).splitlines()
    assert lines[0] == "| serving_ops / native | TPOT, batch 1 | TTFT, 512 tokens |"
    assert lines[2] == "| preset dense, eager | 0.800 [0.800-0.800] | 0.900 [0.900-0.900] |"
    assert lines[3] == "| preset dense, eager, `VLLM_BATCH_INVARIANT=1` |  | 0.900 [0.900-0.900] |"


def test_a_summary_of_gpus_has_no_figure_in_which_the_hosts_time_is(result: Comparison) -> None:
    load = StepLoad(batch_sizes=(1,), prompt_lens=(512, 8192), decode_steps=32)
    pairs = {variant: [dict.fromkeys(load.labels, 1.0)] * 5 for variant in ("native", "serving_ops")}
    on_gpu = dataclasses.replace(result, labels=load.labels, pairs=pairs)
    columns = comparison.summary([on_gpu.to_json()]).splitlines()[0].split(" | ")
    assert columns[1:] == ["device time of a decode step, batch 1", "TTFT, 8192 tokens |"]


def test_a_caption_leaves_out_where_a_run_wrote_its_files(result: Comparison) -> None:
    words = (
        "VLLM_CACHE_ROOT=/tmp/cache A=1 python step --name it --out /tmp/out --keep-logs --lock /tmp/lock --rounds 1"
    )
    text = dataclasses.replace(result, run=result.run | {"command": words}).markdown()
    assert text.endswith("`A=1 python step --rounds 1`")


def test_two_runs_are_compared_figure_by_figure(
    result: Comparison, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faster = [{figure: time / 2 for figure, time in entry.items()} for entry in result.pairs["serving_ops"]]
    other = dataclasses.replace(result, pairs=result.pairs | {"serving_ops": faster})
    files = [str(saved(result, tmp_path, "a")), str(saved(other, tmp_path, "b"))]
    assert cli.main(["compare", *files]) == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("| TTFT median"))
    assert [cell.strip() for cell in line.split("|")[2:-1]] == [
        *("85.00 [80.00-90.00]", "42.50 [40.00-45.00]", "0.500", "1.000"),
        *("0.849 [2 pairs]", "0.424 [2 pairs]"),
    ]


def test_two_runs_of_ops_are_compared_case_by_case(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain = json.loads((RESULTS / "ops-cpu.json").read_text())
    for entry in plain["results"]:
        entry["times"]["serving_ops"]["median_us"] *= 1.5
    (tmp_path / "b.json").write_text(json.dumps(plain))
    assert cli.main(["compare", str(RESULTS / "ops-cpu.json"), str(tmp_path / "b.json")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + len(plain["results"]) + 1
    assert "| rows: 1 x 896 fused_add_rms_norm, bfloat16, 1 thread | 1.493 | 2.239 | 1.500 |" in lines
    assert lines[-1].endswith("| 1.500 |")


def test_two_runs_of_accuracy_are_compared_by_their_divergence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = str(RESULTS / "accuracy-cpu.json")
    plain = json.loads(Path(file).read_text())
    for row in plain["rows"]:
        row["divergence"]["serving_ops"] *= 2
    (tmp_path / "b.json").write_text(json.dumps(plain))
    assert cli.main(["compare", file, str(tmp_path / "b.json")]) == 0
    lines = capsys.readouterr().out.splitlines()[2:]
    assert [line.split("|")[1].strip() for line in lines] == ["bf16, eager", "bf16, compiled", "geometric mean"]
    assert all(line.endswith("| 2.000 |") for line in lines)
    assert cli.main(["compare", file, str(RESULTS / "accuracy-cpu-int8.json")]) == 1
    assert "no figures in common" in capsys.readouterr().err


def test_results_of_two_kinds_cannot_be_compared(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["compare", str(RESULTS / "ops-cpu.json"), str(RESULTS / "serve-cpu.json")]) == 1
    assert "no figures in common" in capsys.readouterr().err


def test_labels_name_every_figure_of_a_step_in_the_tables_order() -> None:
    load = StepLoad(batch_sizes=(1, 16), prompt_lens=(512,), decode_steps=32)
    assert list(load.labels) == [tpot(1), device_step(1), tpot(16), device_step(16), ttft(512), HOST]
    assert load.context == 513
    assert dataclasses.replace(load, decode_steps=1000).context == 1129


def test_startup_line_is_found_behind_the_engines_prefix() -> None:
    log = ["non-default args: {'model': '/somewhere/serving_ops/dense'}", f"(Worker pid=7) INFO 11-20 [x.py:1] {ON}"]
    assert startup_line(log) == ON
    assert is_active(ON)


@pytest.mark.parametrize("switch", ["auto", "strict", "rms_norm", "strict,rms_norm,rms_norm_gated"])
def test_the_line_that_the_plugin_writes_is_found_whatever_is_switched_on(
    switch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SERVING_OPS", switch)
    written = describe([SimpleNamespace(kind="RMSNorm", native_because=None)], "cuda:0", "prewarmed 2 (3 s)")
    assert startup_line([f"INFO [x.py:1] {written}"]) == written


def test_a_plugin_that_took_no_layer_is_not_active() -> None:
    assert not is_active(startup_line(["serving_ops 0.1.0 (auto, cpu): on for no layer; native: 3 RMSNorm (why)"]))
    assert not is_active(startup_line(["serving_ops is off: SERVING_OPS='yes' is not known"]))


@pytest.mark.parametrize(
    "other",
    ["serving_ops is off: no kernels", "serving_ops 0.1.0 (auto, cuda:1): on for no layer; native: 3 RMSNorm (why)"],
)
@pytest.mark.parametrize("other_first", [True, False])
def test_the_plugin_is_on_where_it_is_on_in_every_worker(other: str, other_first: bool) -> None:
    log = [f"(Worker_TP1) {other}", f"(Worker_TP0) {ON}"]
    assert not is_active(startup_line(log if other_first else log[::-1]))
    assert startup_line([f"(Worker_TP1) {ON}", f"(Worker_TP0) {ON}"]) == ON


def test_kernels_in_vllms_fusion_pass_count_as_active_where_no_layer_is_on() -> None:
    line = "serving_ops 0.1.0 (auto, cuda:0): on for no layer; where vLLM's pass fuses norms with FP8, "
    assert is_active(f"{line}our kernels run")
    assert not is_active(f"{line}vLLM's own run")
