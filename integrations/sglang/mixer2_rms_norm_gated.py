"""SGLang's `Mixer2RMSNormGated` on our operator: Mamba-2 layers.

It gates with SiLU, then norms groups. Where a group's variance is spread over tensor-parallel ranks, SGLang's own code
runs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from serving_ops import NormSpec
from serving_ops.integrations.common.norm_specs import VIEW_SPACING
from serving_ops.integrations.common.rows import alike, rows_fit
from serving_ops.integrations.sglang.adapter import Activations, Adapter, native

OPS: tuple[str, ...] = ("rms_norm_gated",)


def why_native(layer: Any) -> str | None:
    """What the layer does beyond a gated norm of this rank's rows, or None."""
    if not layer.use_rms_norm:
        return "it gates without a norm"
    if layer.n_groups % layer.tp_size != 0:
        return "its groups are spread over tensor-parallel ranks"
    return None


def specs(layer: Any, x: Activations) -> tuple[NormSpec, ...]:
    """Rows whose gate is the first columns of a projection."""
    return (
        x.spec(
            "rms_norm_gated",
            layer,
            eps=layer.variance_epsilon,
            norm_before_gate=False,
            group_size=layer.group_size,
            gate_token_stride=VIEW_SPACING * layer.weight.numel(),
        ),
    )


def forward(layer: Any, x: Tensor, gate: Tensor) -> Any:
    """`Mixer2RMSNormGated.forward`: x (..., N), gate like it; a new tensor."""
    if not rows_fit(x, layer.weight) or not alike(x, gate):
        return native(layer)(x, gate)
    return torch.ops.serving_ops.rms_norm_gated(
        x, gate, layer.weight, layer.variance_epsilon, norm_before_gate=False, group_size=layer.group_size
    )


MODULES = ("sglang.srt.layers.attention.mamba.mixer2_rms_norm_gated",)

ADAPTER = Adapter("Mixer2RMSNormGated", MODULES, "Mixer2RMSNormGated", OPS, why_native, specs, forward)
