from __future__ import annotations

import json
from pathlib import Path

import pytest

from serving_ops.bench_e2e import cli, presets, table

pytest.importorskip("transformers")
SMALL = {"hidden_size": 32, "intermediate_size": 64, "vocab_size": 64, "num_hidden_layers": 2}
SMALL_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16}
SMALL_HYBRID = {"linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16}


@pytest.mark.parametrize("preset", ["dense", "hybrid"])
def test_steps_of_both_models_become_a_table(
    preset: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = SMALL | SMALL_HEADS
    if preset == "hybrid":
        small |= SMALL_HYBRID | {"linear_value_head_dim": 16, "mlp_only_layers": [0, 1]}
        small |= {"layer_types": ["linear_attention", "full_attention"]}
    monkeypatch.setitem(presets.PRESETS[preset], "cpu", presets.preset_config(preset, "cpu") | small)
    monkeypatch.setenv("SERVING_OPS_PREWARM", "0")
    out = tmp_path / "steps.json"
    words = ["--preset", preset, "--device", "cpu", "--batch", "2", "8", "--rounds", "2", "--out", str(out)]
    assert cli.main(["training-steps", *words]) == 0
    shown = capsys.readouterr().out
    report = json.loads(out.read_text())
    assert "SERVING_OPS_PREWARM=0 python -m serving_ops.bench_e2e training-steps --preset" in report["command"]
    assert report["replaced"]
    assert [len(report["pairs"][name]) for name in ("native", "serving_ops")] == [2, 2]
    assert report["losses"]["serving_ops"][-1] == pytest.approx(report["losses"]["native"][-1], rel=0.02)
    assert "2 x 8 tokens" in shown
    assert table.main([str(out)]) == 0
    assert "| step |" in capsys.readouterr().out
