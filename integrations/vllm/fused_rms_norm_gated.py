"""vLLM's `FusedRMSNormGated` on our operator: KDA layers (Kimi-Linear, GLM-5, Bailing) build it by the old name.

vLLM has had two classes of this name, in two files that cannot both be imported. This adapter takes the class that
vLLM's models import. On one core (Zen 5), eager, 32 heads of 128, one token takes 7.4 us and vLLM's class takes 19; 512
tokens take 0.44 ms and vLLM's class takes 3.7. On CUDA vLLM runs the kernel of flash-linear-attention, or Inductor's.
The gated regime of bench_e2e/results/ops-h200.json has both beside ours. No engine with this class has been measured on
CUDA.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from serving_ops import NormSpec
from serving_ops.integrations.common.calls import gated
from serving_ops.integrations.common.gated_layers import OPS, fused_specs
from serving_ops.integrations.vllm.adapter import Activations, Adapter

MODULES = (
    "vllm.third_party.flash_linear_attention.ops.kda",
    "vllm.model_executor.layers.fla.ops.kda",  # 0.25 has it here
)


def specs(layer: Any, x: Activations) -> tuple[NormSpec, ...]:
    """Rows, and heads gated by a view."""
    return fused_specs(layer, layer.hidden_size, x)


def forward(
    layer: Any,
    x: Tensor,
    g: Tensor,
    residual: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
) -> Any:
    """`FusedRMSNormGated.forward_cuda`: x (..., N), g with the same rows; a new tensor of x's shape."""
    if residual is not None or prenorm:
        return None
    return gated(x, g, layer.weight, layer.eps, activation=layer.activation)


ADAPTER = Adapter("FusedRMSNormGated", MODULES, OPS, specs, forward)
