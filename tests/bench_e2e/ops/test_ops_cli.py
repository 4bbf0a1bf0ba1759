from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from serving_ops.bench_e2e import cli
from serving_ops.bench_e2e.ops import timing


def test_a_run_writes_what_was_measured_and_on_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(timing, "BUDGET_S", 0.0)
    monkeypatch.setattr(timing, "WINDOW_S", 2e-5)
    out = tmp_path / "results" / "ops.json"
    words = ["--device", "cpu", "--threads", "1", "--contestants", "eager", "--out", str(out)]
    status = cli.main(["ops", *words, "--sizes", "2x64,2x3x128"])
    report = json.loads(out.read_text())
    assert status == 0
    assert set(report["contestants"]) == {"serving_ops", "eager"}
    assert {result["regime"] for result in report["results"]} == {"rows", "variants", "gated"}
    assert "--threads 1" in report["command"]
    assert report["versions"]["torch"]
    assert report["hardware"]["cores"] >= 1
    shown = capsys.readouterr().out
    assert "[1/" in shown
    assert "best peer / ours" in shown


def test_sizes_that_fit_no_regime_are_an_error(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["ops", "--device", "cpu", "--regime", "gated", "--sizes", "4x64"])
    assert "no such size here" in capsys.readouterr().err


def test_a_contestant_that_is_not_here_is_an_error_that_names_those_that_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["ops", "--device", "cpu", "--contestants", "eager,Quark"])
    shown = capsys.readouterr().err
    assert "not here: Quark" in shown
    assert "Inductor" in shown


def test_what_was_measured_before_a_crash_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timing, "BUDGET_S", 0.0)
    monkeypatch.setattr(timing, "WINDOW_S", 2e-5)
    measured: list[object] = []

    def crash_on_the_second() -> None:
        measured.append(1)
        if len(measured) == 2:
            raise RuntimeError("an illegal memory access was encountered")

    monkeypatch.setattr(torch.cuda, "empty_cache", crash_on_the_second)
    out = tmp_path / "ops.json"
    words = ["--device", "cpu", "--threads", "1", "--contestants", "eager", "--out", str(out)]
    with pytest.raises(RuntimeError, match="illegal memory access"):
        cli.main(["ops", *words, "--regime", "rows", "--sizes", "2x64,3x64"])
    assert len(json.loads(out.read_text())["results"]) == 2
