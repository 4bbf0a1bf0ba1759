"""VLLM_BATCH_INVARIANT=1: ours serve in place of vLLM's kernels, and what comes out does not depend on the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from in_process import DEVICE, HEAD, HIDDEN, SPEC, no_operator_may_run, rows, survey

from serving_ops import PrewarmReport, counters, extension
from serving_ops.integrations.vllm import features, installed, layers, register, startup
from serving_ops.integrations.vllm.layers import NormLayer
from serving_ops.integrations.vllm.qk_norm_rope_layer import CACHED_KIND


@pytest.fixture
def asked_for(registered: None, in_vllm: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As on CUDA with VLLM_BATCH_INVARIANT=1, in eager mode."""
    from vllm import envs
    from vllm.model_executor.custom_op import op_registry_oot

    monkeypatch.setattr(envs, "VLLM_BATCH_INVARIANT", True)
    monkeypatch.setattr(features, "is_batch_invariant", lambda: True)
    register()
    assert installed.failures == {}
    yield
    op_registry_oot.pop("RMSNorm", None)


def _norm(method: str, size: int = HIDDEN, **options: Any) -> Any:
    from vllm.model_executor.layers.layernorm import RMSNorm

    layer = RMSNorm(size, **{"dtype": torch.bfloat16, **options}).to(DEVICE).requires_grad_(False)
    if layer.has_weight:
        layer.weight.data = rows(size, dtype=layer.weight.dtype)
    layer._forward_method = getattr(layer, method)
    return layer


needs_cpp = pytest.mark.skipif(extension.cpp_library() is None, reason="the C++ library was not built")


@needs_cpp
def test_only_then_the_class_is_replaced_beside_the_ir(registered: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not features._is_wanted("RMSNorm")
    monkeypatch.setattr(features, "is_batch_invariant", lambda: True)
    assert features._is_wanted("RMSNorm")
    assert features._is_wanted(features.IR_PROVIDERS)


@pytest.mark.parametrize("on_cuda", [True, False])
@pytest.mark.parametrize("chosen", [True, False])
def test_it_is_a_matter_of_cuda_alone(monkeypatch: pytest.MonkeyPatch, on_cuda: bool, chosen: bool) -> None:
    from vllm import envs
    from vllm.platforms import current_platform

    monkeypatch.setattr(type(current_platform), "is_cuda", lambda self: on_cuda)
    monkeypatch.setattr(envs, "VLLM_BATCH_INVARIANT", chosen)
    assert features.is_batch_invariant() == (on_cuda and chosen)


@needs_cpp
def test_eager_layers_run_on_ours_and_compiled_ones_ask_the_ir(
    asked_for: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vllm.model_executor.layers.layernorm import RMSNorm

    x, residual = rows(4, HIDDEN), rows(4, HIDDEN) * 0.5
    eager, compiled = _norm("forward_cuda"), _norm("forward_native")
    expected = compiled(x.clone(), residual.clone())
    asked: list[object] = []
    monkeypatch.setattr(RMSNorm, "forward_native", lambda *args: asked.append(args))
    before = counters.snapshot()["fused_add_rms_norm"]["kernel"]
    torch.testing.assert_close(eager(x.clone(), residual.clone()), expected)
    assert counters.snapshot()["fused_add_rms_norm"]["kernel"] == before + 1
    assert asked == []
    _norm("forward_native")(x, residual)
    assert len(asked) == 1


TAKEN = {
    "rows": ({}, rows(4, HIDDEN), None),
    "rows with a residual": ({}, rows(4, HIDDEN), rows(4, HIDDEN) * 0.5),
    "an fp32 weight": ({"dtype": torch.float32}, rows(4, HIDDEN), rows(4, HIDDEN) * 0.5),
    "no weight": ({"has_weight": False}, rows(4, HIDDEN), rows(4, HIDDEN) * 0.5),
    "heads in a wider buffer": ({}, rows(4, 8 * HIDDEN)[:, : 4 * HIDDEN].view(4, 4, HIDDEN), None),
    "no rows": ({}, rows(0, HIDDEN), rows(0, HIDDEN)),
}

_SAME = rows(4, HIDDEN)

LEFT = {
    "a variance over half of the row": ({"var_hidden_size": 128}, rows(4, HIDDEN), None),
    "float64": ({"dtype": torch.float64}, rows(4, HIDDEN, dtype=torch.float64), None),
    "a bf16 weight for fp32 rows": ({}, rows(4, HIDDEN, dtype=torch.float32), None),
    "a last stride of 4": ({}, rows(HIDDEN, 4).t(), None),
    "a residual in fp32": ({}, rows(4, HIDDEN), rows(4, HIDDEN, dtype=torch.float32)),
    "a residual with a last stride of 4": ({}, rows(4, HIDDEN), rows(HIDDEN, 4).t()),
    "a residual that is x": ({}, _SAME, _SAME),
}


@needs_cpp
@pytest.mark.parametrize("name", ["variance_size_override", "has_weight"])
def test_a_layer_without_an_attribute_that_the_class_asks_for_is_vllms_and_a_reason(asked_for: None, name: str) -> None:
    layer = _norm("forward_cuda")
    delattr(layer, name)
    (found,) = survey(layer)
    assert found.native_because == f"ServingOpsRMSNorm has no {name}"
    assert layer.stay_native


@needs_cpp
@pytest.mark.parametrize("case", TAKEN)
def test_the_class_agrees_with_vllms_in_place_where_there_is_a_residual(asked_for: None, case: str) -> None:
    from vllm import ir

    options, x, residual = TAKEN[case]
    layer = _norm("forward_cuda", **options)
    weight = layer.weight if layer.has_weight else None
    if residual is None:
        expected = ir.ops.rms_norm.impls["native"].impl_fn(x, weight, layer.variance_epsilon)
        torch.testing.assert_close(layer(x), expected)
        return
    x, residual = x.clone(), residual.clone()
    expected = ir.ops.fused_add_rms_norm.impls["native"].impl_fn(x, residual, weight, layer.variance_epsilon)
    result = layer(x, residual)
    torch.testing.assert_close(result, expected)
    assert result[0] is x
    assert result[1] is residual


@needs_cpp
@pytest.mark.parametrize("case", LEFT)
def test_what_the_class_does_not_take_stays_vllms(asked_for: None, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    from vllm.model_executor.layers.layernorm import RMSNorm

    options, x, residual = LEFT[case]
    layer = _norm("forward_cuda", **options)
    no_operator_may_run(monkeypatch)
    monkeypatch.setattr(RMSNorm, "forward_cuda", lambda *_: "vLLM's")
    assert layer(x, residual) == "vLLM's"


@needs_cpp
def test_layers_whose_prewarm_failed_are_native_again(asked_for: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from vllm.model_executor.layers.layernorm import RMSNorm

    spec = dataclasses.replace(SPEC, op="fused_add_rms_norm")
    monkeypatch.setattr("serving_ops.prewarm", lambda specs: PrewarmReport(failed={spec: "no compiler"}))
    layer = _norm("forward_cuda")
    startup.prewarm([NormLayer("RMSNorm", (spec,), None)])
    no_operator_may_run(monkeypatch)
    monkeypatch.setattr(RMSNorm, "forward_cuda", lambda *_: "vLLM's")
    assert layer(rows(4, HIDDEN), rows(4, HIDDEN)) == "vLLM's"
    assert survey(layer)[0].native_because == "its prewarm failed"


@needs_cpp
def test_the_start_up_line_counts_both_kinds(asked_for: None) -> None:
    found = survey(torch.nn.ModuleList([_norm("forward_cuda"), _norm("forward_native"), _norm("forward_cuda", HEAD)]))
    assert [(layer.kind, layer.native_because) for layer in found] == [("RMSNorm", None)] * 3


@needs_cpp
def test_a_user_who_keeps_an_op_back_keeps_vllms_kernels(
    registered: None, in_vllm: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(features, "is_batch_invariant", lambda: True)
    monkeypatch.setenv("SERVING_OPS", "rms_norm")
    register()
    assert survey(_norm("forward_cuda"))[0].native_because == layers.BATCH_INVARIANT


@pytest.mark.gpu
@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_a_prompt_gets_the_same_bits_alone_as_in_a_batch(served: Callable[..., Any], mode: str) -> None:
    run = served("dense", mode, "auto", "batch-invariant")
    (line,) = run.start_up_lines()
    assert f"on for 5 of 5 RMSNorm, 2 of 2 {CACHED_KIND}; " in line
    alone = run.result["alone"]
    assert alone["tokens"] == run.result["tokens"]
    assert alone["logprobs"] == run.result["logprobs"]
