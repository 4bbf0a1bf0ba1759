"""`bench_e2e` on the real SGLang, on CPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sglang_versions
import torch
from sglang_versions import run

from serving_ops.bench_e2e import comparison
from serving_ops.bench_e2e.step_engine import tpot, ttft

HERE = Path(__file__).parent

pytestmark = [
    pytest.mark.engine,
    pytest.mark.slow,
    pytest.mark.skipif(torch.cuda.is_available(), reason="on a CUDA machine SGLang does not run on CPU"),
]

on_each = pytest.mark.parametrize(
    "version", [pytest.param(version, marks=sglang_versions.needs(version)) for version in sglang_versions.SERVED]
)
on_one = pytest.mark.parametrize(
    "version", [pytest.param(version, marks=sglang_versions.needs(version)) for version in sglang_versions.SERVED[:1]]
)


@on_each
@pytest.mark.parametrize("ranks", [1, 2])
def test_the_scheduler_of_every_rank_answers_the_bench_from_its_own_process(
    version: str, ranks: int, tmp_path: Path, written_model: Callable[[str], Path]
) -> None:
    environment = sglang_versions.environment(version) | sglang_versions.on_ranks(ranks) | {"SERVING_OPS": "auto"}
    command = [str(HERE / "run_step_engine.py"), str(written_model("dense")), str(tmp_path)]
    done = run([*command, json.dumps({"tp_size": ranks})], environment)
    assert done.returncode == 0, done.stdout[-6000:]
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["asked"] == ranks
    assert result["ms"] > 0
    assert result["replays"] == 0


@on_one
def test_engines_with_and_without_the_plugin_are_compared_in_turns(
    version: str, tmp_path: Path, written_model: Callable[[str], Path]
) -> None:
    small = ["--engines", "1", "--rounds", "1", "--prompt-lens", "64", "--decode-steps", "4"]
    model = ["--model", str(written_model("dense"))]
    command = ["-m", "serving_ops.bench_e2e", "step", "--engine", "sglang", *model, *small]
    done = run([*command, "--out", str(tmp_path / "real.json")], sglang_versions.environment(version))
    assert done.returncode == 0, done.stdout[-6000:]
    result = comparison.load(tmp_path / "real.json")
    assert (result.run["engine"], result.run["versions"]["sglang"]) == ("sglang", version)
    assert {tpot(1), ttft(64)} <= result.figures.keys()
    assert result.plugin_lines["native"] == [None]
    assert result.active


@on_one
def test_a_real_sglang_serves_both_variants_to_its_own_load_generator(version: str, tmp_path: Path) -> None:
    command = ["-m", "serving_ops.bench_e2e", "serve", "--engine", "sglang", "--quick"]
    done = run([*command, "--out", str(tmp_path / "real.json")], sglang_versions.environment(version))
    assert done.returncode == 0, done.stdout[-6000:]
    result = comparison.load(tmp_path / "real.json")
    assert result.active
    for (figures,) in result.pairs.values():
        assert figures["median_ttft_ms"] > 0 < figures["median_tpot_ms"]
