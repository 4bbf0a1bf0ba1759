"""VLLM_BATCH_INVARIANT=1: ours serve in place of vLLM's kernels, and what comes out does not depend on the batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from in_process import DEVICE, HEAD, HIDDEN, rows, survey

from serving_ops import counters, extension
from serving_ops.integrations.vllm import features, installed, ir_layers, register
from serving_ops.integrations.vllm.qk_norm_rope_layer import KIND


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

    layer = RMSNorm(size, dtype=torch.bfloat16, **options).to(DEVICE).requires_grad_(False)
    layer._forward_method = getattr(layer, method)
    return layer


needs_cpp = pytest.mark.skipif(extension.cpp_library() is None, reason="the C++ library was not built")


def test_only_then_the_class_is_replaced_beside_the_ir(registered: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not features._is_for_this_vllm(features.RMS_NORM)
    monkeypatch.setattr(features, "is_batch_invariant", lambda: True)
    assert features._is_for_this_vllm(features.RMS_NORM)
    assert features._is_for_this_vllm(features.IR_PROVIDERS)


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
    assert survey(_norm("forward_cuda"))[0].native_because == ir_layers.BATCH_INVARIANT


@pytest.mark.gpu
@pytest.mark.engine
@pytest.mark.slow
@pytest.mark.parametrize("mode", ["eager", "compiled"])
def test_a_prompt_gets_the_same_bits_alone_as_in_a_batch(served: Callable[..., Any], mode: str) -> None:
    run = served("dense", mode, "auto", "batch-invariant")
    (line,) = run.start_up_lines()
    assert ("on for 9 of 9 RMSNorm; " if mode == "eager" else f"on for 5 of 5 RMSNorm, 2 of 2 {KIND}; ") in line
    alone = run.result["alone"]
    assert alone["tokens"] == run.result["tokens"]
    assert alone["logprobs"] == run.result["logprobs"]
