"""SGLang's `GemmaRMSNorm` on our operators: Gemma, Qwen3-Next and Qwen3.5.

The weight is stored as its difference from one. With a residual both arguments are written, without one nothing is, as
in `rms_norm`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from serving_ops import NormSpec
from serving_ops.integrations.common.norm_specs import as_view
from serving_ops.integrations.common.rows import alike, rows_fit
from serving_ops.integrations.sglang.adapter import Activations, Adapter, given, native

OPS: tuple[str, ...] = ("rms_norm", "fused_add_rms_norm")
WEIGHT_OFFSET = 1.0


def why_native(layer: Any) -> str | None:
    """Nothing: it has no options."""
    return None


def specs(layer: Any, x: Activations) -> tuple[NormSpec, ...]:
    """Hidden states with a residual or without, or heads."""
    rows = [x.spec(op, layer, eps=layer.variance_epsilon, weight_offset=WEIGHT_OFFSET) for op in OPS]
    return tuple(rows) if rows[0].size == x.hidden_size else (*rows, as_view(rows[0]))


def forward(layer: Any, x: Tensor, residual: Tensor | None = None, *more: Any, **others: Any) -> Any:
    """`GemmaRMSNorm.forward`: x (..., N); with a residual like x, both are written and returned."""
    if given(more, others) or not rows_fit(x, layer.weight):
        return native(layer)(x, residual, *more, **others)
    if residual is None:
        return torch.ops.serving_ops.rms_norm(x, layer.weight, layer.variance_epsilon, weight_offset=WEIGHT_OFFSET)
    if residual is x or not alike(x, residual):
        return native(layer)(x, residual, *more, **others)
    torch.ops.serving_ops.fused_add_rms_norm(
        x, residual, layer.weight, layer.variance_epsilon, weight_offset=WEIGHT_OFFSET
    )
    return x, residual


ADAPTER = Adapter("GemmaRMSNorm", ("sglang.srt.layers.layernorm",), "GemmaRMSNorm", OPS, why_native, specs, forward)
