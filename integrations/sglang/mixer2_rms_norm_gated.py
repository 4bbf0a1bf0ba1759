"""SGLang's `Mixer2RMSNormGated` on our operator: Mamba-2 layers.

It gates with SiLU, then norms groups. Where a group's variance is spread over tensor-parallel ranks, SGLang's own code
runs.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from serving_ops.integrations.common.gated_layers import OPS, mixer2, mixer2_specs, why_not_mixer2
from serving_ops.integrations.sglang.adapter import Adapter, native


def forward(layer: Any, x: Tensor, gate: Tensor) -> Any:
    """`Mixer2RMSNormGated.forward`: x (..., N), gate like it; a new tensor."""
    ours = mixer2(layer, x, gate)
    return native(layer)(x, gate) if ours is None else ours


MODULES = ("sglang.srt.layers.attention.mamba.mixer2_rms_norm_gated",)

ADAPTER = Adapter("Mixer2RMSNormGated", MODULES, "Mixer2RMSNormGated", OPS, why_not_mixer2, mixer2_specs, forward)
