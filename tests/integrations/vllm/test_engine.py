"""Real engines, eager and compiled: dense models, a gated-delta-net hybrid, a Mamba-2; with the plugin and without."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import other_versions
import pytest
import torch

pytest.importorskip("vllm")

from answers import LOGPROB_TOLERANCE, assert_tokens, logprobs_apart
from in_process import FUSED

from serving_ops.integrations.vllm.qk_norm_rope_layer import CACHED_KIND, KIND
from serving_ops.ops import registry

pytestmark = pytest.mark.engine

MODELS = ("dense", "dense_int8", "hybrid", "mamba2")
MODES = ("eager", "compiled")

LAYERS = {
    # input, post-attention, q and k norm of two layers, and the last norm
    "dense": {"RMSNorm": 9},
    "dense_int8": {"RMSNorm": 9},
    # input and post-attention norm of two layers, q and k norm of the attention layer, the last norm; one GDN layer
    "hybrid": {"GemmaRMSNorm": 7, "RMSNormGated": 1},
    # the norm before each of two layers and the last one; the gated norm within each
    "mamba2": {"RMSNorm": 3, "Mixer2RMSNormGated": 2},
}

IN_ONE_CALL = {"cpu": KIND, "cuda": CACHED_KIND}
"""What the line calls attention layers whose q and k one call norms and rotates."""

WITHOUT_HEADS = {
    ("dense", "cpu"): ({"RMSNorm": 5}, 2),
    ("dense", "cuda"): ({"RMSNorm": 5}, 2),
    ("dense_int8", "cpu"): ({"RMSNorm": 5}, 2),
    ("hybrid", "cuda"): ({"GemmaRMSNorm": 5, "RMSNormGated": 1}, 1),
}
"""A model's norms without those of q and k, and the number of attention layers that have these in one call."""

CALLS_PER_STEP = {
    "dense": {"rms_norm": 1, "fused_add_rms_norm": 4, "rms_norm_gated": 0, "qk_norm_rope": 2},
    "dense_int8": {"rms_norm": 1, "fused_add_rms_norm": 4, "rms_norm_gated": 0, "qk_norm_rope": 2},
    "hybrid": {"rms_norm": 3, "fused_add_rms_norm": 4, "rms_norm_gated": 1},
    "mamba2": {"rms_norm": 1, "fused_add_rms_norm": 2, "rms_norm_gated": 2},
}

QUANTIZING = {"rms_norm": 1, "fused_add_rms_norm": 3}
"""Those of a step that quantize for the layer after them, in "dense_int8": all whole rows but the last norm."""

SERVED_BY = {"installed": MODELS, **dict.fromkeys(other_versions.VERSIONS, ("dense",))}


def _marks(model: str, mode: str, vllm: str) -> list[pytest.MarkDecorator]:
    """One engine is served in `make test`. Those that are compared with one native engine run in one worker."""
    group = f"{model} in vLLM {vllm if vllm in other_versions.VERSIONS else 'installed'}"
    slow = [pytest.mark.slow] if (model, mode, vllm) != ("dense", "eager", "installed") else []
    on_cpu = [pytest.mark.skipif(torch.cuda.is_available(), reason="norms before INT8 are ours on CPU alone")]
    only = on_cpu if model == "dense_int8" else []
    return [other_versions.needs(vllm), pytest.mark.xdist_group(group), *slow, *only]


runs = [
    pytest.param(
        model,
        mode,
        vllm,
        id=f"{model}-{mode}" + (f"-{vllm}" if vllm != "installed" else ""),
        marks=_marks(model, mode, vllm),
    )
    for vllm, models in SERVED_BY.items()
    for model in models
    for mode in MODES
    if (model, mode) != ("dense_int8", "compiled")  # vLLM's own
]


def _quantizes(model: str, mode: str) -> bool:
    """Whether norms quantize for the layer after them, in a model that is served on CPU alone."""
    return (model, mode) == ("dense_int8", "eager") and "cpu" in registry.find("rms_norm_quant").in_cpp


def _calls_per_step(model: str, mode: str) -> dict[str, int]:
    """On CPU."""
    expected = CALLS_PER_STEP[model]
    moved = QUANTIZING if _quantizes(model, mode) else {}
    left = {op: count - moved.get(op, 0) for op, count in expected.items()}
    return left | {f"{op}_quant": count for op, count in moved.items()}


@pytest.mark.parametrize(("model", "mode", "vllm"), runs)
def test_one_line_says_for_how_many_layers_it_is_on(
    served: Callable[..., Any], model: str, mode: str, vllm: str
) -> None:
    run = served(model, mode, "auto", vllm)
    lines = run.start_up_lines()
    assert len(lines) == 1, lines
    norms, attentions = WITHOUT_HEADS.get((model, run.device()), (LAYERS[model], 0))
    expected = norms | ({IN_ONE_CALL[run.device()]: attentions} if attentions else {})
    assert ("4 norms quantize for the layer after them" in lines[0]) == _quantizes(model, mode)
    on = lines[0].partition("; ")[0]
    assert on.count(" of ") == len(expected), on
    for kind, count in expected.items():
        assert f"{count} of {count} {kind}" in on
    assert ("native" in lines[0]) == ((model, run.device()) == ("hybrid", "cpu"))


@pytest.mark.parametrize(("model", "mode", "vllm"), runs)
def test_every_step_calls_each_norm_once_in_the_worker_and_never_the_reference(
    served: Callable[..., Any], model: str, mode: str, vllm: str
) -> None:
    run = served(model, mode, "auto", vllm)
    if run.device() != "cpu":
        pytest.skip("replays of CUDA graphs are not counted")
    calls = run.calls()
    assert {op: count["reference"] for op, count in calls.items()} == {op: {} for op in calls}
    _assert_calls_per_step(run, _calls_per_step(model, mode))


def _assert_calls_per_step(run: Any, expected: dict[str, int]) -> None:
    calls = {op: count["kernel"] + sum(count["reference"].values()) for op, count in run.calls().items()}
    assert {op for op, count in calls.items() if count} <= set(expected)
    steps = calls["fused_add_rms_norm"] // expected["fused_add_rms_norm"]
    assert steps >= len(run.result["tokens"][0])
    assert {op: calls[op] for op in expected} == {op: steps * per_step for op, per_step in expected.items()}


@pytest.mark.parametrize(("model", "mode", "vllm"), runs)
def test_without_the_switch_the_engine_is_vllms_own(
    served: Callable[..., Any], model: str, mode: str, vllm: str
) -> None:
    run = served(model, mode, "off", vllm)
    assert run.start_up_lines() == []
    assert run.result["after"][0]["norms"] == LAYERS[model]
    assert all(count == {"kernel": 0, "from_python": 0, "reference": {}} for count in run.calls().values())


@pytest.mark.slow
@pytest.mark.xdist_group("dense in vLLM installed")
def test_where_workers_are_not_found_the_engine_is_vllms_own_and_a_line_says_so(served: Callable[..., Any]) -> None:
    run = served("dense", "eager", "auto", "without workers")
    assert run.start_up_lines() == []
    said = [line for line in run.output.splitlines() if "serving_ops" in line]
    assert len(said) == 1, said
    assert "serving_ops is off: No module named 'vllm.v1.worker.worker_base' (vLLM " in said[0]
    native = served("dense", "eager", "off", "installed")
    assert run.output.count("Traceback") == native.output.count("Traceback")  # vLLM logs one of its own
    assert run.result["after"][0]["norms"] == LAYERS["dense"]
    assert run.result["tokens"] == native.result["tokens"]


@pytest.mark.gpu
@pytest.mark.parametrize(("model", "mode", "vllm"), runs)
def test_nothing_compiles_while_serving_that_would_not_without_the_plugin(
    served: Callable[..., Any], model: str, mode: str, vllm: str
) -> None:
    ours, native = (served(model, mode, switch, vllm).output for switch in ("auto", "off"))
    assert "JIT monitor activated" in ours
    compiled, natively = (set(re.findall(r"during inference: (\w+)", output)) for output in (ours, native))
    assert compiled <= natively


@pytest.mark.parametrize(("model", "mode", "vllm"), runs)
def test_greedy_tokens_equal_native_ones_up_to_near_ties(
    served: Callable[..., Any], model: str, mode: str, vllm: str
) -> None:
    native, ours = (served(model, mode, switch, vllm).result for switch in ("off", "auto"))
    equal = sum(map(list.__eq__, native["tokens"], ours["tokens"]))
    print(f"\n{model} {mode}: all tokens equal for {equal} of {len(ours['tokens'])} prompts")
    assert_tokens(native, ours)


@pytest.mark.parametrize(("model", "mode", "vllm"), runs)
def test_logprobs_stay_within_bf16_rounding_of_native_ones(
    served: Callable[..., Any], model: str, mode: str, vllm: str
) -> None:
    native, ours = (served(model, mode, switch, vllm).result for switch in ("off", "auto"))
    apart = logprobs_apart(native, ours)
    print(f"\n{model} {mode}: {len(apart)} logprobs, at most {max(apart):.4f} nats apart")
    assert max(apart) <= LOGPROB_TOLERANCE


@pytest.mark.parametrize(("model", "mode", "vllm"), [run for run in runs if run.values[0] == "dense"])
def test_q_and_k_in_one_call_give_native_tokens_whatever_runs_it(
    served: Callable[..., Any], model: str, mode: str, vllm: str
) -> None:
    native, ours = (served(model, mode, switch, vllm) for switch in ("off", FUSED))
    (line,) = ours.start_up_lines()
    assert f"on for 5 of 5 RMSNorm, 2 of 2 {IN_ONE_CALL[ours.device()]}; " in line
    if ours.device() == "cpu":
        _assert_calls_per_step(ours, CALLS_PER_STEP["dense"])
    assert_tokens(native.result, ours.result)
    assert max(logprobs_apart(native.result, ours.result)) <= LOGPROB_TOLERANCE
