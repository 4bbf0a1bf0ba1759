"""SGLang's `RMSNormGated` on our operator: what Qwen3.5, Jet-Nemotron and Bailing call its `layernorm_gated.RMSNorm`.

In Qwen3.5's prefill on CUDA, from 0.5.23 on, the gate is (tokens, heads, N) in a wider projection beside an x of
(tokens * heads, N): it is read where it lies. On CPU SGLang has no code for these layers, unless the CPU has AMX.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from serving_ops import NormSpec
from serving_ops.checks import ACTIVATIONS
from serving_ops.integrations.common.norm_specs import as_view
from serving_ops.integrations.common.rows import alike, in_shape_of, rows_fit
from serving_ops.integrations.sglang.adapter import Activations, Adapter, given, native

OPS: tuple[str, ...] = ("rms_norm_gated",)
SILU = "swish"
"""What the layers without an `activation` of their own gate with."""


def _activation(layer: Any) -> str:
    name: str = getattr(layer, "activation", SILU)
    return name


def why_native(layer: Any) -> str | None:
    """What the layer does beyond our operator, or None."""
    return None if _activation(layer) in ACTIVATIONS else f"it gates with {_activation(layer)}"


def specs(layer: Any, x: Activations) -> tuple[NormSpec, ...]:
    """Rows, and heads gated by a view."""
    spec = x.spec(
        "rms_norm_gated",
        layer,
        eps=layer.eps,
        activation=_activation(layer),
        norm_before_gate=layer.norm_before_gate,
        group_size=layer.group_size,
        has_bias=layer.bias is not None,
    )
    return spec, as_view(spec)


def forward(layer: Any, x: Tensor, z: Tensor | None = None, *more: Any, **others: Any) -> Any:
    """`RMSNormGated.forward`: x (..., N), z with the same rows or None; a new tensor of x's shape."""
    heads = x if z is None else in_shape_of(z, x)
    fits = rows_fit(heads, layer.weight) and (z is None or alike(heads, z))
    if not fits or given(more, others):
        return native(layer)(x, z, *more, **others)
    out = torch.ops.serving_ops.rms_norm_gated(
        heads,
        z,
        layer.weight,
        layer.eps,
        bias=layer.bias,
        norm_before_gate=layer.norm_before_gate,
        activation=_activation(layer),
        group_size=layer.group_size,
    )
    return out if heads is x else out.view(x.shape)


MODULES = tuple(f"sglang.{where}.attention.fla.layernorm_gated" for where in ("kernels.ops", "srt.layers"))

ADAPTER = Adapter("RMSNormGated", MODULES, "RMSNorm", OPS, why_native, specs, forward)
