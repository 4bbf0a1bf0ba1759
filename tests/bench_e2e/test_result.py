from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from serving_ops.bench_e2e import report, table
from serving_ops.bench_e2e.load import METRICS
from serving_ops.bench_e2e.plot import write_plot
from serving_ops.bench_e2e.plugin_log import is_active, startup_line
from serving_ops.bench_e2e.report import disturbed, print_result
from serving_ops.bench_e2e.result import Result, load_result
from serving_ops.bench_e2e.saving import compact
from serving_ops.integrations.common.line import describe

ON = "serving_ops 0.1.0 (auto, cuda:0): on for 13 of 13 RMSNorm; prewarmed 2"


def without_plugin(result: Result) -> Result:
    ours = [dataclasses.replace(entry, plugin_active=False, plugin_line=None) for entry in result.rounds["serving_ops"]]
    return dataclasses.replace(result, rounds={**result.rounds, "serving_ops": ours})


def test_a_result_reads_back_as_it_was_written(result: Result, tmp_path: Path) -> None:
    path = tmp_path / "sample.json"
    path.write_text(compact(result.to_json()))
    assert load_result(path) == result


def test_json_uses_the_key_names_of_vllm(result: Result) -> None:
    plain = result.to_json()
    native = plain["variants"]["native"]
    for key in (
        "mean_ttft_ms",
        "median_ttft_ms",
        "p90_ttft_ms",
        "p99_ttft_ms",
        "mean_tpot_ms",
        "p99_tpot_ms",
    ):
        assert native[key] == 100.0
        assert native["rounds"][0][key] == 100.0
    assert plain["ratios"]["median_tpot_ms"]["rounds"] == 2


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"schema": 99}'])
def test_a_file_that_is_no_result_is_named_in_the_error(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"other\.json is no result"):
        load_result(path)


def test_json_says_when_the_plugin_was_not_active(result: Result) -> None:
    assert result.to_json()["plugin_active"] is True
    assert without_plugin(result).to_json()["plugin_active"] is False


def test_terminal_table_fits_into_80_columns_and_shouts_when_inactive(result: Result) -> None:
    console = Console(width=80, record=True)
    print_result(result, console)
    shown = console.export_text()
    assert "85.00 [80.00-90.00]" in shown
    assert "…" not in shown
    assert "not active" not in shown
    print_result(without_plugin(result), console)
    assert "serving_ops was not active" in console.export_text()


def test_plot_is_a_png(result: Result, tmp_path: Path) -> None:
    path = write_plot(result, tmp_path / "sample.png")
    assert path.read_bytes().startswith(b"\x89PNG\r\n")


def test_plot_works_with_one_variant(result: Result, tmp_path: Path) -> None:
    alone = dataclasses.replace(result, rounds={"native": result.rounds["native"]})
    assert write_plot(alone, tmp_path / "alone.png").stat().st_size > 1000


def test_markdown_table_has_a_row_for_each_figure(result: Result) -> None:
    text = report.markdown(result)
    rows = [line for line in text.splitlines() if line.startswith("| T")]
    assert [row.split("|")[1].strip() for row in rows] == [
        *("TTFT median", "TTFT p90", "TTFT p99"),
        *("TPOT median", "TPOT p90", "TPOT p99"),
    ]
    assert "85.00 [80.00-90.00]" in rows[0]
    assert result.command in text
    assert "not active" not in text
    assert "not active" in report.markdown(without_plugin(result))


def test_table_replaces_what_stands_between_the_markers_and_nothing_else(result: Result, tmp_path: Path) -> None:
    (tmp_path / "sample.json").write_text(compact(result.to_json()))
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- table:sample -->\nold\n<!-- /table -->\nafter\n<!-- table:x -->\n<!-- /table -->\n")
    for _ in range(2):  # a second run changes nothing
        assert table.main([str(tmp_path / "sample.json"), "--readme", str(readme)]) == 0
    text = readme.read_text()
    assert text.startswith("before\n<!-- table:sample -->\n**preset dense")
    assert text.endswith("<!-- /table -->\nafter\n<!-- table:x -->\n<!-- /table -->\n")
    assert "old" not in text
    assert text.count("TTFT median") == 1


def test_table_without_its_markers_is_an_error_that_leaves_the_readme(
    result: Result, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "sample.json").write_text(compact(result.to_json()))
    readme = tmp_path / "README.md"
    readme.write_text("no markers\n")
    assert table.main([str(tmp_path / "sample.json"), "--readme", str(readme)]) == 1
    assert "<!-- table:sample -->" in capsys.readouterr().err
    assert readme.read_text() == "no markers\n"


def test_startup_line_is_found_behind_the_engines_prefix() -> None:
    log = [
        "non-default args: {'model': '/somewhere/serving_ops/dense'}",
        f"(Worker pid=7) INFO 11-20 [x.py:1] {ON}",
    ]
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


def test_kernels_in_vllms_fusion_pass_count_as_active_where_no_layer_is_on() -> None:
    line = "serving_ops 0.1.0 (auto, cuda:0): on for no layer; where vLLM's pass fuses norms with FP8, "
    assert is_active(f"{line}our kernels run")
    assert not is_active(f"{line}vLLM's own run")


def test_a_round_slowed_by_something_else_is_named(result: Result) -> None:
    assert disturbed(result) == []
    slow = dataclasses.replace(result.rounds["native"][1], times_ms=dict.fromkeys(METRICS, 400.0), number=3)
    noisy = dataclasses.replace(result, rounds={"native": [*result.rounds["native"], slow]})
    assert disturbed(noisy) == ["round 3 native"]
