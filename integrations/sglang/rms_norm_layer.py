"""SGLang's `RMSNorm` on our operators.

With a residual, both arguments are written, as SGLang's kernels do. Without one, nothing is written, because callers
use x afterwards. A row's bits do not depend on the batch, so batch-invariant mode needs no special code. In that mode
SGLang adds and norms in eager PyTorch, and we have a kernel."""

from __future__ import annotations

import dataclasses
from typing import Any

from torch import Tensor

from serving_ops import NormSpec
from serving_ops.integrations.common.calls import NORMS, norm
from serving_ops.integrations.common.norm_specs import norms_of
from serving_ops.integrations.sglang.adapter import WEIGHT_IN_FP32, Activations, Adapter, given, native

QUANTIZES = "its consumer quantizes to FP8"
"""The reason for a norm that SGLang fuses with FP8 quantization. Any other quantization is a kernel after the norm."""

BEYOND = {
    "variance_size_override": "its variance is over a part of the row",
    "cast_x_before_out_mul": "it rounds before its weight",
    "fp32_residual": "it keeps its residual in fp32",
    "override_orig_dtype": "its result has a dtype of its own",
    "x_pad_to_multiple": "it pads its rows",
}
"""An attribute of a layer -> what it makes the layer do that our operators cannot. None, False or 0 is off."""


def why_native(layer: Any) -> str | None:
    """Return what the layer does beyond a norm of whole rows, or None."""
    if _quantizes(layer):
        return QUANTIZES
    return next((reason for name, reason in BEYOND.items() if getattr(layer, name, None)), None)


def _quantizes(layer: Any) -> bool:
    """Return whether SGLang writes the result in FP8. Since 0.5.23 a norm may know the projection that reads it."""
    projection = getattr(layer, "_quant_linear", None)
    if projection is None:
        return False
    from sglang.srt.layers import layernorm

    return layernorm._fp8_static_input_scale(projection) is not None


def _scale(layer: Any) -> Tensor | None:
    weight: Tensor | None = layer.weight if getattr(layer, "has_weight", True) else None
    return weight


def specs(layer: Any, x: Activations) -> tuple[NormSpec, ...]:
    """Return the norms of hidden states with and without a residual, or of heads."""
    found = norms_of(layer, layer.weight, x, WEIGHT_IN_FP32)
    return found if _scale(layer) is not None else tuple(dataclasses.replace(spec, weight_dtype=None) for spec in found)


def forward(layer: Any, x: Tensor, residual: Tensor | None = None, *more: Any, **others: Any) -> Any:
    """`RMSNorm.forward`: x (..., N); with a residual like x, both are written and returned."""
    ours = None
    if not given(more, others):
        ours = norm(x, residual, _scale(layer), layer.variance_epsilon, WEIGHT_IN_FP32)
    return native(layer)(x, residual, *more, **others) if ours is None else ours


ADAPTER = Adapter("RMSNorm", ("sglang.srt.layers.layernorm",), "RMSNorm", NORMS, why_native, specs, forward)
