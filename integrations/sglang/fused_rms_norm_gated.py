"""SGLang's `FusedRMSNormGated` on our operator, over x: Qwen3-Next and Kimi-Linear.

SGLang's own writes its result into x where x is contiguous, and so does ours, which saves an allocation. On CPU SGLang
has no code for these layers, unless the CPU has AMX.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from serving_ops import NormSpec
from serving_ops.integrations.common.gated_layers import OPS, fused_specs, why_other_gate
from serving_ops.integrations.common.rows import alike, in_shape_of, rows_fit
from serving_ops.integrations.sglang.adapter import Activations, Adapter, native


def why_native(layer: Any) -> str | None:
    """What the layer does beyond our operator, or None."""
    return "it has no weight" if layer.weight is None else why_other_gate(layer)


def specs(layer: Any, x: Activations) -> tuple[NormSpec, ...]:
    """Rows, and heads gated by a view."""
    return fused_specs(layer, layer.weight.numel(), x)


def forward(
    layer: Any,
    x: Tensor,
    g: Tensor,
    residual: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
) -> Any:
    """`FusedRMSNormGated.forward`: x (..., N), g like it; x is written and returned where it is contiguous.

    Kimi-Linear's x is (1, tokens, heads, N), its g (tokens, heads, N).
    """
    beyond = residual is not None or prenorm or residual_in_fp32
    heads = in_shape_of(g, x)
    if beyond or not rows_fit(heads, layer.weight) or not alike(heads, g):
        return native(layer)(x, g, residual, prenorm, residual_in_fp32)
    op = torch.ops.serving_ops.rms_norm_gated
    if not x.is_contiguous():
        return op(heads, g, layer.weight, layer.eps, activation=layer.activation)
    op.out(heads, g, layer.weight, layer.eps, activation=layer.activation, out=heads)
    return x


MODULES = tuple(f"sglang.{where}.attention.fla.fused_norm_gate" for where in ("kernels.ops", "srt.layers"))

ADAPTER = Adapter("FusedRMSNormGated", MODULES, "FusedRMSNormGated", OPS, why_native, specs, forward)
