"""`python -m serving_ops doctor --model` says what the engine's start-up line says, without an engine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("vllm")

import resolved_configs

from serving_ops import extension
from serving_ops.integrations.vllm import qk_norm_rope_layer

pytestmark = pytest.mark.skipif(extension.cpp_library() is None, reason="the C++ library was not built")

HERE = Path(__file__).parent
ENVIRONMENT = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1", "SERVING_OPS": "off", "VLLM_NO_USAGE_STATS": "1"}


WRITE = "import sys; sys.path.insert(0, sys.argv[1]); import models; models.CONFIGS[sys.argv[2]]().save_pretrained('.')"


def _line(folder: Path, *mode: str) -> str:
    command = [sys.executable, "-m", "serving_ops", "doctor", "--json", *mode, "--model", str(folder)]
    done = subprocess.run(command, env=os.environ | ENVIRONMENT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    line: str = json.loads(done.stdout)["model"]
    return line


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("hybrid", {"7 of 7 GemmaRMSNorm", "1 of 1 RMSNormGated"}),
        ("mamba2", {"3 of 3 RMSNorm", "2 of 2 Mixer2RMSNormGated"}),
    ],
)
def test_it_counts_the_layers_that_an_engine_would_put_on_ours(tmp_path: Path, name: str, expected: set[str]) -> None:
    subprocess.run([sys.executable, "-c", WRITE, str(HERE), name], cwd=tmp_path, check=True)
    on = _line(tmp_path, "--eager").partition("on for ")[2].partition("; ")[0]
    assert set(on.split(", ")) == expected


def test_it_says_that_a_quantized_model_keeps_all_norms_but_those_of_q_and_k(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", WRITE, str(HERE), "dense"], cwd=tmp_path, check=True)
    config = json.loads((tmp_path / "config.json").read_text())
    quantization = resolved_configs.CHECKPOINTS["compressed int8 token"]
    (tmp_path / "config.json").write_text(json.dumps({**config, "quantization_config": quantization}))
    line = _line(tmp_path)
    assert f"on for 2 of 2 {qk_norm_rope_layer.KIND}; native: 5 RMSNorm (its consumer quantizes to INT8)" in line
