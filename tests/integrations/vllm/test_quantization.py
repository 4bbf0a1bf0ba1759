"""What a quantized model keeps of vLLM's, on each vLLM that is tested, without a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import other_versions
import pytest
import torch

pytest.importorskip("vllm")

from in_process import DEVICE, HEAD, HIDDEN, OURS_FIRST, survey, vllm_config
from resolved_configs import CASES

from serving_ops import extension
from serving_ops.integrations.vllm import features, ir_providers, priority, quantization

pytestmark = pytest.mark.skipif(extension.cpp_library() is None, reason="the C++ library was not built")

SCRIPT = Path(__file__).with_name("resolved_configs.py")
SECONDS = 600
INSTALLED = "installed"

on_each = pytest.mark.parametrize(
    "vllm",
    [INSTALLED, *(pytest.param(version, marks=other_versions.marks(version)) for version in other_versions.VERSIONS)],
)

ACTIVATIONS_AS_THEY_ARE = {
    "compressed fp8 weights",
    "compressed int4 weights",
    "awq",
    "gptq",
    "bitsandbytes",
    "inc",
    "online int8_per_channel_weight_only",
    "online experts_int8",
    "moe_wna16",
    *(case for case in CASES if case.startswith("unquantized")),
}
"""Cases in which nothing quantizes what a norm computes."""

TO_FP8_OR_INT8 = {
    *("fp8 static", "fp8 dynamic", "fp8 block", "fbgemm_fp8", "deepseek_v4_fp8", "modelopt", "modelopt fp8 block"),
    *("compressed fp8 static", "compressed fp8 token", "compressed fp8 block", "compressed int4 fp8"),
    *("compressed int8 token", "compressed int8 static"),
    *("compressed fp8 token, pass on", "compressed fp8 token, pass off", "compressed fp8 token, level 0"),
    *("fp8 block, quantized by Inductor", "fp8 block, level 0"),
    *("online fp8", "online fp8_per_tensor", "online fp8_per_block", "online fp8_per_channel"),
}
"""Cases in which linear layers quantize what a norm computes to one of these two."""

QUANTIZED_IN_OPERATORS = {"fp8 block", "compressed fp8 block", "deepseek_v4_fp8"}
"""Cases in which vLLM quantizes in an operator where it compiles the model."""

SINCE_0_32 = {"modelopt fp8 block"}
"""More of these."""

UNKNOWN_TO_SOME = {"bitsandbytes", "bitsandbytes int8", "online nvfp4_per_token"}
"""Cases that not every version has."""

NOT_MADE = {"TorchAOConfig", "FPQuantConfig"}
"""Classes of configurations that vLLM makes with a package that may be missing, or for a Blackwell alone."""

REASONS = {
    "fp8 block, quantized by Inductor": "its consumer quantizes to FP8",
    "online fp8_per_block": "its consumer quantizes to FP8",
    "compressed int8 token": "its consumer quantizes to INT8",
    "compressed int4 fp8": "its consumer quantizes to FP8",
    "modelopt_fp4": "its consumer quantizes to NVFP4",
    "mxfp4": "its consumer quantizes to MXFP4",
    "online mxfp8": "its consumer quantizes to MXFP8",
    "online fp8_per_tensor": "its consumer quantizes to FP8",
    "quark": "its consumer may quantize: quark",
}


@pytest.fixture(scope="module")
def resolved() -> Callable[[str], dict[str, Any]]:
    """resolved(vllm): what resolved_configs.py found in that version, of a Hopper."""

    @cache
    def look(vllm: str) -> dict[str, Any]:
        ours = {"HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": "1", "VLLM_NO_USAGE_STATS": "1", "VLLM_LOGGING_LEVEL": "ERROR"}
        version = {} if vllm == INSTALLED else other_versions.environment(vllm)
        command = [sys.executable, str(SCRIPT)]
        environment = os.environ | version | ours
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=SECONDS, check=False)
        assert done.returncode == 0, (done.stdout + done.stderr)[-6000:]
        found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
        assert found["failures"] == {}
        return found

    return look


def _norms_are_ours(case: str, mode: str, vllm: str) -> bool:
    """In eager mode vLLM quantizes in a kernel of its own."""
    in_operators = QUANTIZED_IN_OPERATORS | (set() if vllm == "0.25.1" else SINCE_0_32)
    return case in ACTIVATIONS_AS_THEY_ARE | (TO_FP8_OR_INT8 if mode == "eager" else in_operators)


def _pairs(found: dict[str, Any], vllm: str, *, ours: bool) -> dict[str, tuple[dict[str, Any], dict[str, Any]]]:
    """What vLLM resolved without the plugin and with it, of the cases in which norms are or are not ours."""
    pairs = {
        f"{case}, {mode}": (off, found["auto"][case][mode])
        for case, modes in found["off"].items()
        for mode, off in modes.items()
        if _norms_are_ours(case, mode, vllm) == ours
    }
    return {case: pair for case, pair in pairs.items() if "refused" not in pair[0]}


def _differing(pairs: dict[str, tuple[dict[str, Any], dict[str, Any]]], *names: str) -> dict[str, list[str]]:
    differing = {case: [name for name in names if off[name] != on[name]] for case, (off, on) in pairs.items()}
    return {case: found for case, found in differing.items() if found}


@on_each
def test_a_model_whose_norms_stay_is_configured_and_built_as_without_the_plugin(
    vllm: str, resolved: Callable[[str], dict[str, Any]]
) -> None:
    pairs = _pairs(resolved(vllm), vllm, ours=False)
    assert _differing(pairs, "pass_config", "custom_ops", "ir_op_priority", "classes") == {}
    assert {case for case, (_, on) in pairs.items() if on["why"] is None} == set()


@on_each
def test_where_norms_are_ours_vllm_chooses_its_passes_as_without_the_plugin(
    vllm: str, resolved: Callable[[str], dict[str, Any]]
) -> None:
    pairs = _pairs(resolved(vllm), vllm, ours=True)
    assert _differing(pairs, "pass_config", "custom_ops") == {}
    assert all(on["why"] is None for _, on in pairs.values())
    first = {on["ir_op_priority"][op][0] for _, on in pairs.values() for op in priority.OPS}
    assert first <= ir_providers.OURS
    assert all("RMSNormGated" in on["classes"] for _, on in pairs.values())


@on_each
def test_a_pass_that_the_user_chose_stays_as_chosen(vllm: str, resolved: Callable[[str], dict[str, Any]]) -> None:
    found = resolved(vllm)["auto"]
    for case, chosen in (("unquantized, pass on", "True"), ("unquantized, pass off", "False")):
        assert found[case]["compiled"]["pass_config"]["fuse_norm_quant"] == chosen


ONE_SCALE_A_TOKEN = {
    "installed": {"compressed fp8 token", "fp8 dynamic"},
    "0.25.1": {"compressed fp8 token", "fp8 dynamic", "online fp8"},
    "0.33.0": {"compressed fp8 token", "fp8 dynamic"},
}
"""Models that give each token a scale. vLLM 0.25 quantizes so while loading, and later versions give one tensor one."""


@on_each
def test_vllms_pass_is_turned_on_for_compiled_models_with_a_scale_a_token_whose_user_left_it_to_vllm(
    vllm: str, resolved: Callable[[str], dict[str, Any]]
) -> None:
    found = resolved(vllm)["turning on"]
    assert {(case, mode) for case in found for mode, on in found[case].items() if on} == {
        (case, "compiled") for case in ONE_SCALE_A_TOKEN[vllm]
    }


IN_TWO_LAYERS = {
    **{name: ["RMSNorm CutlassInt8ScaledMMLinearKernel"] * 4 for name in ("Llama", "Qwen2", "Qwen3")},
    **{name: ["GemmaRMSNorm CutlassInt8ScaledMMLinearKernel"] * 4 for name in ("Gemma2", "Gemma3")},
    "Qwen3Moe": [],
    "compressed fp8 token": ["RMSNorm CutlassFP8ScaledMMLinearKernel"] * 4,
    "fp8 dynamic": ["RMSNorm CutlassFP8ScaledMMLinearKernel"] * 4,
    "fp8 block": ["RMSNorm CutlassFp8BlockScaledMMKernel"] * 4,
    "compressed fp8 static": [],
    "fbgemm_fp8": [],
}
"""Pairs before attention and before the MLP. A router reads what experts do, and a layer of experts is left whole. A
static scale is the checkpoint's, and FBGEMM bounds the scales of its tokens."""


@on_each
def test_norms_are_paired_with_the_linear_layers_behind_them_in_vllms_own_models(
    vllm: str, resolved: Callable[[str], dict[str, Any]]
) -> None:
    assert resolved(vllm)["pairs"] == IN_TWO_LAYERS


@on_each
def test_what_the_pass_fuses_is_prewarmed_in_the_form_of_the_checkpoint(
    vllm: str, resolved: Callable[[str], dict[str, Any]]
) -> None:
    assert resolved(vllm)["prewarmed"] == {
        "compressed fp8 token": ["token 1024"],
        "compressed fp8 block": ["group 128"],
        "fp8 block": ["group 128"],
    }


@on_each
def test_the_reason_names_what_the_consumer_quantizes_to(vllm: str, resolved: Callable[[str], dict[str, Any]]) -> None:
    found = resolved(vllm)["auto"]
    assert {case: found[case]["compiled"]["why"] for case in REASONS} == REASONS


@on_each
def test_every_quantization_that_vllm_has_is_among_the_cases(
    vllm: str, resolved: Callable[[str], dict[str, Any]]
) -> None:
    found = resolved(vllm)
    looked_at = [on for modes in found["auto"].values() for on in modes.values()]
    refused = {case for case, modes in found["auto"].items() if "refused" in modes["compiled"]}
    assert refused <= UNKNOWN_TO_SOME
    seen = {on["class"] for on in looked_at if "refused" not in on}
    assert set(found["methods"].values()) - seen <= NOT_MADE


def _quantized(name: str, **more: Any) -> Any:
    return SimpleNamespace(get_name=lambda: name, **more)


class Int4WeightOnlyConfig:
    """Named as torchao's."""


class Float8DynamicActivationFloat8WeightConfig:
    """Named as torchao's."""


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (None, None),
        (_quantized("gguf"), None),
        (_quantized("torchao", torchao_config=Int4WeightOnlyConfig()), None),
        (
            _quantized("torchao", torchao_config=Float8DynamicActivationFloat8WeightConfig()),
            "its consumer may quantize: torchao",
        ),
        (_quantized("fp_quant"), "its consumer may quantize: fp_quant"),
        (_quantized("one of another plugin"), "its consumer may quantize: one of another plugin"),
    ],
)
def test_what_is_not_known_to_leave_activations_as_they_are_may_quantize(config: Any, reason: str | None) -> None:
    assert quantization.why_norms_stay(vllm_config(config)) == reason


def test_weight_only_kernels_that_are_told_to_quantize_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_MARLIN_INPUT_DTYPE", "int8")
    assert quantization.why_norms_stay(vllm_config(_quantized("auto_gptq"))) == "its consumer quantizes to INT8"


def test_layers_quantized_while_loading_beside_a_weight_only_checkpoint_count() -> None:
    config = vllm_config(_quantized("auto_awq"), quantization_config=SimpleNamespace())
    assert quantization.why_norms_stay(config) == "its consumer may quantize: auto_awq with a quantization_config"


def _compressed(kind: str) -> Any:
    inputs = SimpleNamespace(type=kind, num_bits=8)
    return _quantized("compressed-tensors", target_scheme_map={"Linear": {"input_activations": inputs}})


@pytest.mark.parametrize(
    ("kind", "device", "mode", "enforced", "reason"),
    [
        ("int", "cpu", "NONE", False, None),
        ("int", "cpu", "DYNAMO_TRACE_ONCE", False, "its consumer quantizes to INT8"),
        ("int", "cuda", "NONE", True, None),
        ("int", "cuda", "VLLM_COMPILE", False, "its consumer quantizes to INT8"),
        ("int", "cuda", "NONE", False, "its consumer quantizes to INT8"),
        ("float", "cpu", "NONE", True, "its consumer quantizes to FP8"),
        ("float", "cuda", "NONE", True, None),
        ("float", "cuda", "NONE", False, "its consumer quantizes to FP8"),
        ("float", "cuda", "STOCK_TORCH_COMPILE", False, "its consumer quantizes to FP8"),
    ],
)
def test_norms_are_ours_in_eager_mode_before_int8_and_on_cuda_before_fp8(
    monkeypatch: pytest.MonkeyPatch, kind: str, device: str, mode: str, enforced: bool, reason: str | None
) -> None:
    """On CUDA only where that was enforced: otherwise the kernels are in a CUDA graph."""
    from vllm.platforms import current_platform

    for name in ("cpu", "cuda"):
        monkeypatch.setattr(type(current_platform), f"is_{name}", lambda self, name=name: name == device)
    config = vllm_config(_compressed(kind), enforce_eager=enforced)
    config.compilation_config = SimpleNamespace(mode=SimpleNamespace(name=mode))
    assert quantization.why_norms_stay(config) == reason


IN_OPERATORS: dict[str, Any] = {
    "mode": SimpleNamespace(name="VLLM_COMPILE"),
    "backend": "inductor",
    "ir_enable_torch_wrap": True,
    "is_custom_op_enabled": lambda op: op == "quant_fp8",
}
FP8, NVFP4 = _quantized("fp8"), _quantized("modelopt_fp4")


@pytest.mark.parametrize(
    ("more", "ours"),
    [
        ({}, True),
        ({"mode": SimpleNamespace(name="STOCK_TORCH_COMPILE")}, False),
        ({"mode": None}, False),
        ({"backend": "eager"}, False),
        ({"ir_enable_torch_wrap": False}, False),
        ({"is_custom_op_enabled": lambda op: False}, False),
    ],
)
def test_fp8_that_is_quantized_in_an_operator_behind_vllms_pass_leaves_norms_plain(
    monkeypatch: pytest.MonkeyPatch, more: dict[str, Any], ours: bool
) -> None:
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "is_cuda", lambda self: True)
    config = vllm_config(FP8)
    config.compilation_config = SimpleNamespace(**IN_OPERATORS | more)
    assert quantization.why_norms_stay(config) == (None if ours else "its consumer quantizes to FP8")


def _norms() -> torch.nn.Module:
    from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm, RMSNormGated

    norms = [RMSNorm(HIDDEN), RMSNorm(HIDDEN, var_hidden_size=128), GemmaRMSNorm(HIDDEN), RMSNormGated(HEAD)]
    return torch.nn.ModuleList([*norms]).to(DEVICE, torch.bfloat16)


def test_every_norm_of_a_model_that_keeps_them_is_vllms_and_that_is_no_fallback(registered: None, in_vllm: Any) -> None:
    from vllm import ir

    features.install_for(vllm_config(NVFP4), strict=True)
    for op in priority.OPS:
        getattr(ir.ops, op).set_default(["native"])
    found = survey(_norms(), NVFP4)
    assert [layer.kind for layer in found] == ["RMSNorm", "RMSNorm", "GemmaRMSNorm", "RMSNormGated"]
    assert {layer.native_because for layer in found} == {"its consumer quantizes to NVFP4"}
    assert not any(layer.fell_back() for layer in found)


def test_the_next_model_of_the_process_gets_our_classes_again(registered: None, in_vllm: Any) -> None:
    features.install_for(vllm_config(NVFP4), strict=True)
    assert not any(type(layer).__name__.startswith("ServingOps") for layer in _norms())
    features.install_for(vllm_config(), strict=True)
    assert {"ServingOpsGemmaRMSNorm", "ServingOpsRMSNormGated"} <= {type(layer).__name__ for layer in _norms()}


def test_an_ir_priority_that_the_user_gave_holds_for_a_quantized_model_too(registered: None, in_vllm: Any) -> None:
    from vllm import ir
    from vllm.model_executor.layers.layernorm import RMSNorm

    for op in priority.OPS:
        getattr(ir.ops, op).set_default(OURS_FIRST)
    (layer,) = survey(RMSNorm(HIDDEN).to(DEVICE, torch.bfloat16), NVFP4)
    assert layer.native_because is None
