"""vLLM's norm classes that are ours on CPU alone: Gemma's, Mamba-2's and KDA's."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from in_process import DEVICE, SPEC, no_operator_may_run, rows, survey, vllm_config

from serving_ops import NormSpec, PrewarmReport, counters, extension
from serving_ops.integrations.vllm import adapters, features, installed, layers, priority, startup
from serving_ops.integrations.vllm.layers import NormLayer

pytestmark = [
    pytest.mark.skipif(DEVICE.type != "cpu", reason="these classes are ours on CPU alone"),
    pytest.mark.skipif(extension.cpp_library() is None, reason="the C++ library was not built"),
    pytest.mark.usefixtures("registered"),
]


def _gemma() -> Any:
    from vllm.model_executor.layers.layernorm import GemmaRMSNorm

    layer = GemmaRMSNorm(256)
    with torch.no_grad():
        layer.weight.copy_(rows(256))
    return layer.to(DEVICE, torch.bfloat16).requires_grad_(False)


GEMMA_INPUTS = {
    "rows": (rows(4, 256), None),
    "rows with a residual": (rows(4, 256), rows(4, 256) * 0.5),
    "heads in a wider buffer": (rows(4, 2048)[:, :1024].view(4, 4, 256), None),
    "a last stride of 4": (rows(256, 4).t(), None),
    "float64": (rows(4, 256, dtype=torch.float64), rows(4, 256, dtype=torch.float64)),
    "a residual in fp32": (rows(4, 256), rows(4, 256, dtype=torch.float32)),
}
GEMMA_TAKEN = ("rows", "rows with a residual", "heads in a wider buffer")


@pytest.mark.parametrize("case", GEMMA_TAKEN)
def test_the_gemma_layer_agrees_with_vllms_and_skips_its_ir(
    monkeypatch: pytest.MonkeyPatch, in_vllm: Any, case: str
) -> None:
    from vllm import ir
    from vllm.model_executor.layers.layernorm import GemmaRMSNorm

    x, residual = GEMMA_INPUTS[case]
    layer = _gemma()
    native = {op: getattr(ir.ops, op).impls["native"].impl_fn for op in priority.OPS}
    weight = layer.weight.float() + 1.0
    if residual is None:
        expected = native["rms_norm"](x, weight, layer.variance_epsilon)
    else:
        expected = native["fused_add_rms_norm"](x, residual, weight, layer.variance_epsilon)
        x, residual = x.clone(), residual.clone()
    monkeypatch.setattr(GemmaRMSNorm, "forward_native", lambda *_: pytest.fail("vLLM's own code ran"))
    result = layer(x) if residual is None else layer(x, residual)
    torch.testing.assert_close(result, expected)
    if residual is not None:
        assert [tensor.data_ptr() for tensor in result] == [x.data_ptr(), residual.data_ptr()]


@pytest.mark.parametrize("case", [case for case in GEMMA_INPUTS if case not in GEMMA_TAKEN])
def test_what_the_gemma_layer_does_not_take_stays_vllms(
    monkeypatch: pytest.MonkeyPatch, in_vllm: Any, case: str
) -> None:
    layer = _gemma()
    no_operator_may_run(monkeypatch)
    layer(*GEMMA_INPUTS[case])


def test_the_users_ir_priority_holds_for_gemma_layers_too(monkeypatch: pytest.MonkeyPatch, in_vllm: Any) -> None:
    from vllm import ir

    ir.ops.fused_add_rms_norm.set_default(["native"])
    layer = _gemma()
    assert survey(layer)[0].native_because == "the IR priority of fused_add_rms_norm starts with native"
    no_operator_may_run(monkeypatch)
    layer(*GEMMA_INPUTS["rows with a residual"])


def test_gemma_layers_need_no_ir(monkeypatch: pytest.MonkeyPatch, in_vllm: Any) -> None:
    monkeypatch.setitem(installed.failures, features.IR_PROVIDERS, "No module named 'vllm.ir'")
    monkeypatch.setattr(layers, "_why_dispatched_elsewhere", lambda specs: pytest.fail("vLLM's IR was asked"))
    assert survey(_gemma())[0].native_because is None


def test_gemma_layers_whose_prewarm_failed_are_native_again(monkeypatch: pytest.MonkeyPatch, in_vllm: Any) -> None:
    spec = dataclasses.replace(SPEC, weight_offset=1.0)
    monkeypatch.setattr("serving_ops.prewarm", lambda specs: PrewarmReport(failed={spec: "no compiler"}))
    layer = _gemma()
    startup.prewarm([NormLayer("GemmaRMSNorm", (spec,), None)])
    no_operator_may_run(monkeypatch)
    layer(*GEMMA_INPUTS["rows"])


@pytest.fixture
def mixer2(monkeypatch: pytest.MonkeyPatch, in_vllm: Any) -> Any:
    """mixer2(groups=, ranks=, norm=): a layer of 512 columns in all, on the first of that many ranks."""
    from vllm.model_executor.layers.mamba import mamba_mixer2

    features.install_for(vllm_config(has_inner_state=True), strict=True)
    monkeypatch.setattr(mamba_mixer2, "get_tensor_model_parallel_rank", lambda: 0)

    def build(groups: int = 4, ranks: int = 1, norm: bool = True) -> Any:
        monkeypatch.setattr(mamba_mixer2, "get_tensor_model_parallel_world_size", lambda: ranks)
        layer = mamba_mixer2.Mixer2RMSNormGated(512, groups, norm)
        if norm:
            layer.weight.data = rows(512 // ranks)
        return layer.to(DEVICE, torch.bfloat16).requires_grad_(False)

    return build


@pytest.mark.parametrize(("groups", "ranks"), [(1, 1), (4, 1), (4, 2)])
def test_the_mixer2_layer_agrees_with_vllms_on_a_strided_gate(mixer2: Any, groups: int, ranks: int) -> None:
    from vllm.model_executor.layers.mamba.mamba_mixer2 import Mixer2RMSNormGated

    layer = mixer2(groups, ranks)
    x, gate = rows(5, 512 // ranks), rows(5, 2048)[:, : 512 // ranks]
    before = counters.snapshot()["rms_norm_gated"]
    result = layer(x, gate)
    after = counters.snapshot()["rms_norm_gated"]
    assert after["kernel"] == before["kernel"] + 1
    # vLLM rounds the normed row before the weight
    torch.testing.assert_close(result, Mixer2RMSNormGated.forward_native(layer, x, gate), rtol=0.02, atol=1e-3)


def test_a_mixer2_layer_that_does_more_than_norm_its_own_rows_stays_vllms(
    monkeypatch: pytest.MonkeyPatch, mixer2: Any
) -> None:
    reasons = [survey(mixer2(**options))[0].native_because for options in ({"groups": 1, "ranks": 2}, {"norm": False})]
    assert reasons == ["its groups are spread over tensor-parallel ranks", "it gates without a norm"]
    layer = mixer2(norm=False)
    no_operator_may_run(monkeypatch)
    layer(rows(5, 512), rows(5, 512))


def test_mixer2_layers_are_counted_and_prewarmed_on_a_gate_in_widerrows(
    monkeypatch: pytest.MonkeyPatch, mixer2: Any
) -> None:
    asked: list[NormSpec] = []
    monkeypatch.setattr("serving_ops.prewarm", lambda specs: asked.extend(specs) or PrewarmReport())
    found = survey(mixer2())
    assert "on for 1 of 1 Mixer2RMSNormGated" in startup.describe(found, DEVICE.type, "")
    startup.prewarm(found)
    assert [(spec.op, spec.size, spec.group_size, spec.norm_before_gate) for spec in asked] == [
        ("rms_norm_gated", 512, 128, False)
    ]
    assert asked[0].gate_token_stride is not None


@pytest.fixture
def kda(in_vllm: Any) -> Any:
    """kda(activation=, eps=, ...): a layer that norms heads of 128, as its models build it."""
    features.install_for(vllm_config(has_inner_state=True), strict=True)

    def build(**options: Any) -> Any:
        layer = _vllms_kda_class()(128, **{"activation": "sigmoid", "dtype": torch.bfloat16, **options})
        if layer.weight is not None:
            layer.weight.data = rows(128, dtype=layer.weight.dtype)
        return layer.to(DEVICE).requires_grad_(False)

    return build


def _vllms_kda_class() -> Any:
    return adapters.ADAPTERS["FusedRMSNormGated"].vllms_class()


def test_the_kda_class_keeps_its_flag_its_attributes_and_its_checkpoints_keys(kda: Any) -> None:
    layer = kda(activation="silu", eps=1e-5)
    assert isinstance(layer, _vllms_kda_class())
    assert type(layer).__name__ == "ServingOpsFusedRMSNormGated"
    assert type(layer).name == _vllms_kda_class().name == "fused_rms_norm_gated"
    kept = ("hidden_size", "elementwise_affine", "eps", "activation", "bias")
    assert [getattr(layer, name) for name in kept] == [128, True, 1e-5, "silu", None]
    assert list(layer.state_dict()) == ["weight"]
    assert list(kda(elementwise_affine=False).state_dict()) == []


def test_vllms_models_build_the_class_that_is_replaced() -> None:
    from vllm.model_executor.layers.mamba.gdn import kimi_gdn_linear_attn

    assert kimi_gdn_linear_attn.FusedRMSNormGated is _vllms_kda_class()


def test_vllms_other_class_of_that_name_is_the_same_or_cannot_be_imported_beside_it(kda: Any) -> None:
    try:
        from vllm.third_party.flash_linear_attention.ops import fused_norm_gate
    except (ModuleNotFoundError, AssertionError):  # 0.25 has no such module; in 0.32 both claim one name
        return
    assert fused_norm_gate.FusedRMSNormGated is _vllms_kda_class()


KDA_INPUTS = {
    "as Kimi-Linear calls it": ({}, rows(1, 5, 16, 128), rows(5, 16, 128)),
    "a gate of x's shape": ({}, rows(1, 5, 16, 128), rows(1, 5, 16, 128)),
    "a gate in wider rows": ({}, rows(1, 5, 16, 128), rows(5, 6144)[:, 4096:].view(5, 16, 128)),
    "one token, a gate in wider rows": ({}, rows(1, 1, 16, 128), rows(1, 6144)[:, 4096:].view(1, 16, 128)),
    "swish": ({"activation": "swish"}, rows(1, 5, 16, 128), rows(5, 16, 128)),
    "silu": ({"activation": "silu"}, rows(1, 5, 16, 128), rows(5, 16, 128)),
    "an fp32 weight": ({"dtype": torch.float32}, rows(1, 5, 16, 128), rows(5, 16, 128)),
    "no weight": ({"elementwise_affine": False}, rows(1, 5, 16, 128), rows(5, 16, 128)),
    "no tokens": ({}, rows(1, 0, 16, 128), rows(0, 16, 128)),
    "a gate in fp32": ({}, rows(1, 5, 16, 128), rows(5, 16, 128, dtype=torch.float32)),
    "a gate of one head": ({}, rows(1, 5, 16, 128), rows(5, 1, 128)),
    "a last stride of 16": ({}, rows(1, 5, 16, 128), rows(5, 128, 16).transpose(1, 2)),
    "float64": (
        {"dtype": torch.float64},
        rows(1, 5, 2, 128, dtype=torch.float64),
        rows(5, 2, 128, dtype=torch.float64),
    ),
}
KDA_LEFT = ("a gate in fp32", "a gate of one head", "a last stride of 16", "float64")


@pytest.mark.parametrize("case", KDA_INPUTS)
def test_the_kda_layer_agrees_with_vllms_on_what_it_takes_and_on_what_it_leaves(kda: Any, case: str) -> None:
    options, x, gate = KDA_INPUTS[case]
    layer = kda(**options)
    before = counters.snapshot()["rms_norm_gated"]
    result = layer(x, gate)
    after = counters.snapshot()["rms_norm_gated"]
    assert after["kernel"] - before["kernel"] == (case not in KDA_LEFT)
    assert after["reference"] == before["reference"]
    torch.testing.assert_close(result, _vllms_kda_class().forward_native(layer, x, gate))


@pytest.mark.parametrize("option", [{"residual": rows(1, 5, 16, 128)}, {"prenorm": True}])
def test_a_kda_layer_asked_for_more_than_a_gated_norm_is_vllms(
    monkeypatch: pytest.MonkeyPatch, kda: Any, option: dict[str, Any]
) -> None:
    layer = kda()
    no_operator_may_run(monkeypatch)
    monkeypatch.setattr(_vllms_kda_class(), "forward_cuda", lambda self, x, *rest: (x, rest))
    x, gate = rows(1, 5, 16, 128), rows(5, 16, 128)
    reached, rest = layer(x, gate, **option)
    assert reached is x
    assert rest[0] is gate
    assert rest[1] is option.get("residual")
    assert rest[2:] == (option.get("prenorm", False), False)


def test_kda_layers_are_counted_and_prewarmed_on_a_gate_in_wider_rows_too(
    monkeypatch: pytest.MonkeyPatch, kda: Any
) -> None:
    asked: list[NormSpec] = []
    monkeypatch.setattr("serving_ops.prewarm", lambda specs: asked.extend(specs) or PrewarmReport())
    found = survey(torch.nn.ModuleList([kda(), kda(elementwise_affine=False)]))
    assert "on for 2 of 2 FusedRMSNormGated; " in startup.describe(found, DEVICE.type, "")
    startup.prewarm(found)
    assert [(spec.size, spec.weight_dtype, spec.activation, spec.gate_token_stride is not None) for spec in asked] == [
        (128, torch.bfloat16, "sigmoid", False),
        (128, torch.bfloat16, "sigmoid", True),
        (128, None, "sigmoid", False),
        (128, None, "sigmoid", True),
    ]


def test_kda_layers_whose_prewarm_failed_are_native_again(monkeypatch: pytest.MonkeyPatch, kda: Any) -> None:
    spec = dataclasses.replace(SPEC, op="rms_norm_gated")
    monkeypatch.setattr("serving_ops.prewarm", lambda specs: PrewarmReport(failed={spec: "no compiler"}))
    layer = kda()
    startup.prewarm([NormLayer("FusedRMSNormGated", (spec,), None)])
    no_operator_may_run(monkeypatch)
    layer(rows(1, 5, 16, 128), rows(5, 16, 128))
    assert survey(layer)[0].native_because == "its prewarm failed"


def test_a_kda_layer_is_vllms_where_the_user_left_the_gated_norm_out(
    monkeypatch: pytest.MonkeyPatch, in_vllm: Any
) -> None:
    from vllm.model_executor.custom_op import op_registry_oot

    monkeypatch.setenv("SERVING_OPS", "strict,rms_norm,fused_add_rms_norm")
    monkeypatch.delitem(op_registry_oot, "FusedRMSNormGated", raising=False)
    features.install_for(vllm_config(has_inner_state=True), strict=True)
    assert "FusedRMSNormGated" not in op_registry_oot
    layer = _vllms_kda_class()(128, dtype=torch.bfloat16)
    assert survey(layer)[0].native_because == layers.LEFT_OUT


def test_models_without_state_space_layers_do_not_import_vllms(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "_put", lambda feature: pytest.fail(f"{feature} was installed"))
    features.install_for(vllm_config(has_inner_state=False), strict=True)
