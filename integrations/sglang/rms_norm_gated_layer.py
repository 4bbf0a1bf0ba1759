"""SGLang's `RMSNormGated` on our operator: what Qwen3.5, Jet-Nemotron and Bailing call its `layernorm_gated.RMSNorm`.

In Qwen3.5's prefill on CUDA, from 0.5.23 on, the gate is (tokens, heads, N) in a wider projection beside an x of
(tokens * heads, N): it is read where it lies. On CPU SGLang has no code for these layers, unless the CPU has AMX.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from serving_ops.integrations.common.gated_layers import OPS, rms_norm_gated, rms_norm_gated_specs, why_other_gate
from serving_ops.integrations.sglang.adapter import Adapter, given, native


def forward(layer: Any, x: Tensor, z: Tensor | None = None, *more: Any, **others: Any) -> Any:
    """`RMSNormGated.forward`: x (..., N), z with the same rows or None; a new tensor of x's shape."""
    ours = None if given(more, others) else rms_norm_gated(layer, x, z)
    return native(layer)(x, z, *more, **others) if ours is None else ours


MODULES = tuple(f"sglang.{where}.attention.fla.layernorm_gated" for where in ("kernels.ops", "srt.layers"))

ADAPTER = Adapter("RMSNormGated", MODULES, "RMSNorm", OPS, why_other_gate, rms_norm_gated_specs, forward)
