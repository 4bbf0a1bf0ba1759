"""SGLang's engine on CPU: a dense model, plain and in INT8, and a hybrid, with the plugin and without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sglang_versions
import torch

pytestmark = [
    pytest.mark.engine,
    pytest.mark.skipif(torch.cuda.is_available(), reason="on a CUDA machine SGLang does not run on CPU"),
]

LAYERS = {
    # input, post-attention, q and k norm of two layers, and the last norm
    "dense": {"RMSNorm": 9},
    # input and post-attention norm of two layers, q and k norm of the attention layer, the last norm; one GDN layer
    "hybrid": {"GemmaRMSNorm": 7, "FusedRMSNormGated": 1},
}

CALLS_PER_STEP = {
    "dense": {"rms_norm": 5, "fused_add_rms_norm": 4, "rms_norm_gated": 0},
    "hybrid": {"rms_norm": 3, "fused_add_rms_norm": 4, "rms_norm_gated": 1},
}

WARMED = {
    "dense": {"rms_norm": 6, "fused_add_rms_norm": 4, "rms_norm_gated": 0},
    "hybrid": {"rms_norm": 6, "fused_add_rms_norm": 4, "rms_norm_gated": 4},
}
"""Calls at start-up, each norm with one token and with two: hidden states, heads, and heads in a view."""


def _marks(model: str, version: str) -> list[pytest.MarkDecorator]:
    """One model in the newest version is served in `make test`."""
    slow = [pytest.mark.slow] if (model, version) != ("dense", sglang_versions.SERVED[-1]) else []
    return [sglang_versions.needs(version), *slow]


def _in_each_version(model: str) -> list[Any]:
    return [pytest.param(version, marks=_marks(model, version)) for version in sglang_versions.SERVED]


on_each_model_and_version = pytest.mark.parametrize(
    ("model", "version"),
    [
        pytest.param(model, version, id=f"{model}-{version}", marks=_marks(model, version))
        for model in LAYERS
        for version in sglang_versions.SERVED
    ],
)
on_each_version_of_dense = pytest.mark.parametrize("version", _in_each_version("dense"))


@on_each_model_and_version
def test_one_line_says_that_it_is_on_for_every_norm(served: Callable[..., Any], model: str, version: str) -> None:
    run = served(model, version, "auto")
    assert run.returncode == 0, run.output[-6000:]
    (line,) = run.start_up_lines()
    on = line.partition("; ")[0]
    assert " (auto, cpu): on for " in on
    assert on.count(" of ") == len(LAYERS[model])
    assert all(f"{count} of {count} {kind}" in on for kind, count in LAYERS[model].items())
    assert "native" not in line


@on_each_model_and_version
def test_every_step_calls_each_norm_once_in_the_scheduler_and_never_the_reference(
    served: Callable[..., Any], model: str, version: str
) -> None:
    run = served(model, version, "auto")
    assert run.scheduler["pid"] != run.result["pid"]
    calls = run.scheduler["calls"]
    assert {op: count["reference"] for op, count in calls.items()} == {op: {} for op in calls}
    assert {op for op, count in calls.items() if count["kernel"]} <= set(CALLS_PER_STEP[model])
    steps = len(run.result["tokens"][0])
    assert {op: count["kernel"] for op, count in calls.items() if op in CALLS_PER_STEP[model]} == {
        op: WARMED[model][op] + steps * per_step for op, per_step in CALLS_PER_STEP[model].items()
    }


@on_each_version_of_dense
def test_without_the_switch_the_engine_is_sglangs_own(served: Callable[..., Any], version: str) -> None:
    run = served("dense", version, "off")
    assert run.returncode == 0, run.output[-6000:]
    assert run.start_up_lines() == []
    assert run.scheduler["switched"] == {}
    assert all(count == {"kernel": 0, "from_python": 0, "reference": {}} for count in run.scheduler["calls"].values())


@on_each_version_of_dense
def test_a_dense_models_greedy_tokens_equal_native_ones(served: Callable[..., Any], version: str) -> None:
    ours, native = (served("dense", version, switch).result["tokens"] for switch in ("auto", "off"))
    assert len(ours) == 4
    assert ours == native


GREEDY = """
import json, sys, torch
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.bfloat16)
more = {"max_new_tokens": int(sys.argv[2]), "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
rows = [torch.tensor([prompt]) for prompt in json.loads(sys.argv[3])]
print(json.dumps([model.generate(row, attention_mask=row * 0 + 1, **more)[0, row.numel():].tolist() for row in rows]))
"""


@pytest.mark.parametrize("version", _in_each_version("hybrid"))
def test_a_hybrids_greedy_tokens_equal_those_of_transformers(
    served: Callable[..., Any], written_model: Callable[[str], Path], version: str
) -> None:
    """SGLang without the plugin gives none to compare with: its gated norm raises on CPU (see test_sglang_norms.py)."""
    import sglang_tokens

    ours = served("hybrid", version, "auto").result["tokens"]
    asked = [str(sglang_tokens.NUM_TOKENS), json.dumps(sglang_tokens.prompts())]
    command = [sys.executable, "-c", GREEDY, str(written_model("hybrid")), *asked]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert ours == json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
@pytest.mark.parametrize("version", _in_each_version("dense")[-1:])
def test_a_fallback_in_strict_mode_stops_the_engine_with_the_line(served: Callable[..., Any], version: str) -> None:
    run = served("dense", version, "strict", HIDE_LIBRARY="1")
    assert run.returncode != 0
    assert run.result == {}
    assert "RuntimeError: SERVING_OPS=strict: serving_ops " in run.output
    assert f"on for no layer; native: {LAYERS['dense']['RMSNorm']} RMSNorm (" in run.output


@on_each_version_of_dense
def test_a_quantized_model_has_the_same_tokens_where_norms_quantize_and_attention_calls_our_operator(
    served: Callable[..., Any], version: str
) -> None:
    """SGLang's products for it are on CUDA; here they are stand-ins, between SGLang's own decoder layers."""
    path = os.pathsep.join([sglang_versions.environment(version)["PYTHONPATH"], str(Path(__file__).parent)])
    as_on_a_gpu = {"AS_ON_A_GPU": "1", "PYTHONPATH": path, "SERVING_OPS_PREWARM": "0"}
    ours, native = (served("dense_int8", version, switch, **as_on_a_gpu) for switch in ("auto", "off"))
    assert [ours.returncode, native.returncode] == [0, 0], ours.output[-6000:] + native.output[-6000:]
    (line,) = ours.start_up_lines()
    assert "4 of 4 RMSNorm with INT8 per token" in line
    assert "2 of 2 Qwen3Attention's q and k" in line
    called = {op for op, calls in ours.scheduler["calls"].items() if calls["kernel"] or calls["reference"]}
    assert called >= {"rms_norm_quant", "fused_add_rms_norm_quant", "qk_norm_rope"}
    assert ours.result["tokens"] == native.result["tokens"]
