"""The command line of engines in turns: one real run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from serving_ops.bench_e2e.cli import INACTIVE
from serving_ops.bench_e2e.environment import detect_device, engine_version, plugin_installed
from serving_ops.bench_e2e.turns.load import tpot, ttft
from serving_ops.bench_e2e.turns.result import load_result

COMMAND = [sys.executable, "-m", "serving_ops.bench_e2e", "--turns"]


def _run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=300)


@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.skipif(engine_version() is None, reason="vLLM is not installed")
@pytest.mark.skipif(not plugin_installed(), reason="serving-ops is not installed, vLLM would not find the plugin")
def test_real_engines_with_and_without_the_plugin_are_compared(tmp_path: Path) -> None:
    small = ("--engines", "1", "--rounds", "1", "--prompt-lens", "64", "--decode-steps", "4")
    done = _run(*small, "--out", str(tmp_path), "--name", "real")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TTFT, 64 tokens" in done.stdout
    result = load_result(tmp_path / "real.json")
    assert {tpot(1), ttft(64)} <= set(result.figures())
    assert result.engines["native"][0].plugin_line is None
    assert "RMSNorm" in str(result.engines["serving_ops"][0].plugin_line)


@pytest.mark.engine
@pytest.mark.skipif(engine_version() is None, reason="vLLM is not installed")
@pytest.mark.skipif(not plugin_installed(), reason="serving-ops is not installed, vLLM would not find the plugin")
def test_real_engines_serve_a_quantized_preset_and_its_norms_stay_vllms(tmp_path: Path) -> None:
    if detect_device() != "cpu":
        pytest.skip("vLLM's INT8 is tested on CPU")
    small = ("--engines", "1", "--rounds", "1", "--prompt-lens", "64", "--decode-steps", "4")
    done = _run("--quantization", "int8-token", *small, "--out", str(tmp_path), "--name", "real")
    assert done.returncode == INACTIVE, done.stdout + done.stderr
    result = load_result(tmp_path / "real.json")
    assert result.model == "preset dense-int8-token"
    assert "native: 25 RMSNorm (its consumer quantizes to INT8)" in str(result.engines["serving_ops"][0].plugin_line)
