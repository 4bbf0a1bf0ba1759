"""vLLM's `RMSNormGated` on our operator: GDN and OLMo layers build it by the old name.

Taken in every mode. Eager, CUDA's flash-linear-attention kernel copies a strided z and CPU has no fused one; compiled,
Inductor's code competes, and `bench_e2e ops --regime gated` times both.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from serving_ops import NormSpec
from serving_ops.checks import ACTIVATIONS
from serving_ops.integrations.common.norm_specs import as_view
from serving_ops.integrations.common.rows import alike, rows_fit
from serving_ops.integrations.vllm.adapter import Activations, Adapter


def why_native(layer: Any, x: Activations) -> str | None:
    """What the layer does beyond our operator, or None."""
    return None if layer.activation in ACTIVATIONS else f"it gates with {layer.activation}"


def specs(layer: Any, x: Activations) -> tuple[NormSpec, ...]:
    """Rows, and heads gated by a view."""
    spec = x.spec(
        "rms_norm_gated",
        layer.weight.numel(),
        layer.weight,
        eps=layer.eps,
        activation=layer.activation,
        norm_before_gate=layer.norm_before_gate,
        group_size=layer.group_size,
        has_bias=layer.bias is not None,
    )
    return spec, as_view(spec)


def forward(layer: Any, x: Tensor, z: Tensor | None = None) -> Any:
    """`RMSNormGated.forward_cuda`: x (..., N), z like it or None; a new tensor."""
    if layer.activation not in ACTIVATIONS or not rows_fit(x, layer.weight):
        return None
    if z is not None and not alike(x, z):
        return None
    return torch.ops.serving_ops.rms_norm_gated(
        x,
        z,
        layer.weight,
        layer.eps,
        bias=layer.bias,
        norm_before_gate=layer.norm_before_gate,
        activation=layer.activation,
        group_size=layer.group_size,
    )


MODULES = ("vllm.model_executor.layers.layernorm",)

ADAPTER = Adapter("RMSNormGated", MODULES, ("rms_norm_gated",), specs, forward, why_native, needs_cpp=False)
