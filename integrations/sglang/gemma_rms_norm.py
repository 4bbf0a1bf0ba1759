"""SGLang's `GemmaRMSNorm` on our operators: Gemma, Qwen3-Next and Qwen3.5.

The weight is stored as its difference from one. With a residual both arguments are written, without one nothing is, as
in `rms_norm`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from serving_ops import NormSpec
from serving_ops.integrations.common.calls import NORMS, norm
from serving_ops.integrations.common.norm_specs import norms_of
from serving_ops.integrations.sglang.adapter import Activations, Adapter, given, native

WEIGHT_OFFSET = 1.0


def why_native(layer: Any) -> str | None:
    """Nothing: it has no options."""
    return None


def specs(layer: Any, x: Activations) -> tuple[NormSpec, ...]:
    """Hidden states with a residual or without, or heads."""
    return norms_of(layer, layer.weight, x, WEIGHT_OFFSET)


def forward(layer: Any, x: Tensor, residual: Tensor | None = None, *more: Any, **others: Any) -> Any:
    """`GemmaRMSNorm.forward`: x (..., N); with a residual like x, both are written and returned."""
    ours = None
    if not given(more, others):
        ours = norm(x, residual, layer.weight, layer.variance_epsilon, WEIGHT_OFFSET)
    return native(layer)(x, residual, *more, **others) if ours is None else ours


ADAPTER = Adapter("GemmaRMSNorm", ("sglang.srt.layers.layernorm",), "GemmaRMSNorm", NORMS, why_native, specs, forward)
