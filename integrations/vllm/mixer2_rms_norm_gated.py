"""vLLM's `Mixer2RMSNormGated` on our operator: Mamba-2 layers build it by the old name.

It gates with SiLU, then norms groups. vLLM's own rounds the normed row before its weight; ours rounds once, at the end.
Where a group's variance is spread over tensor-parallel ranks, vLLM's own code runs. Eager, one core (Zen 5), one group
of 2048: 7.6 us a row where vLLM's takes 19, and 0.29 ms for 512 rows where it takes 5.6. On an H200 the device time of
a Mamba-2's eager decode step falls by 2 to 4% (bench_e2e/results/turns-h200-mamba2-eager.json).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from serving_ops import NormSpec
from serving_ops.integrations.common.norm_specs import VIEW_SPACING
from serving_ops.integrations.common.rows import alike, rows_fit
from serving_ops.integrations.vllm.adapter import Activations, Adapter


def why_native(layer: Any, x: Activations | None = None) -> str | None:
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
            layer.weight.numel(),
            layer.weight,
            eps=layer.variance_epsilon,
            norm_before_gate=False,
            group_size=layer.group_size,
            gate_token_stride=VIEW_SPACING * layer.weight.numel(),
        ),
    )


def forward(layer: Any, x: Tensor, gate: Tensor) -> Any:
    """`Mixer2RMSNormGated.forward_cuda`: x (..., N), gate like it; a new tensor."""
    if why_native(layer) is not None or not rows_fit(x, layer.weight) or not alike(x, gate):
        return None
    return torch.ops.serving_ops.rms_norm_gated(
        x, gate, layer.weight, layer.variance_epsilon, norm_before_gate=False, group_size=layer.group_size
    )


MODULES = ("vllm.model_executor.layers.mamba.mamba_mixer2",)

ADAPTER = Adapter("Mixer2RMSNormGated", MODULES, ("rms_norm_gated",), specs, forward, why_native)
