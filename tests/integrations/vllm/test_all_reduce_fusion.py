"""Under tensor parallelism vLLM's passes join norms to the all-reduce before them. They look for calls of vLLM's IR."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("vllm")

from in_process import DEVICE, HIDDEN, survey, vllm_config
from torch.fx.experimental.proxy_tensor import make_fx

from serving_ops.integrations.vllm import features, installed

PASSES = ("fuse_allreduce_rms", "enable_sp")
CLASSES = ("RMSNorm", "GemmaRMSNorm")


def config(**passes: bool) -> Any:
    found = vllm_config()
    found.compilation_config = SimpleNamespace(pass_config=SimpleNamespace(**passes))
    return found


def layer(name: str) -> Any:
    from vllm.model_executor.layers import layernorm

    return getattr(layernorm, name)(HIDDEN).to(DEVICE, torch.bfloat16)


def operators(layer: Any) -> set[str]:
    """The namespaces of the operators that a compiled graph of the layer calls, with a residual and without."""
    from vllm import ir

    def norms(x: torch.Tensor, residual: torch.Tensor) -> Any:
        return layer.forward_native(x), layer.forward_native(x, residual)

    x, residual = torch.randn(2, 5, HIDDEN, device=DEVICE, dtype=torch.bfloat16)
    with ir.enable_torch_wrap(True), torch.no_grad():
        graph = make_fx(norms)(x, residual).graph
    targets = [node.target for node in graph.nodes if node.op == "call_function"]
    return {target.namespace for target in targets if hasattr(target, "namespace")}


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("joins", PASSES)
def test_the_passes_find_the_norms_as_without_the_plugin(registered: None, in_vllm: Any, joins: str, name: str) -> None:
    features.install_for(config(**{joins: True}), strict=True)
    ours = operators(layer(name))
    installed.undo()
    assert ours == operators(layer(name))
    assert "vllm_ir" in ours


@pytest.mark.parametrize("name", CLASSES)
def test_what_the_passes_leave_is_still_ours(registered: None, in_vllm: Any, name: str) -> None:
    features.install_for(config(fuse_allreduce_rms=True), strict=True)
    (found,) = survey(torch.nn.ModuleList([layer(name)]))
    assert (found.kind, found.native_because) == (name, None)


def test_the_next_model_without_such_a_pass_gets_our_class(registered: None, in_vllm: Any) -> None:
    features.install_for(config(fuse_allreduce_rms=True), strict=True)
    features.install_for(config(fuse_allreduce_rms=False, enable_sp=False), strict=True)
    assert type(layer("GemmaRMSNorm")).__name__ == "ServingOpsGemmaRMSNorm"
