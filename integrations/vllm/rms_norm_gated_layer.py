"""vLLM's `RMSNormGated` on our operator: GDN and OLMo layers build it by the old name.

Taken in every mode. Eager, CUDA's flash-linear-attention kernel copies a strided z and CPU has no fused one; compiled,
Inductor's code competes, and `bench_e2e ops --regime gated` times both.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from serving_ops.integrations.common.gated_layers import OPS, rms_norm_gated, rms_norm_gated_specs, why_other_gate
from serving_ops.integrations.vllm.adapter import Adapter


def forward(layer: Any, x: Tensor, z: Tensor | None = None) -> Any:
    """`RMSNormGated.forward_cuda`: x (..., N), z like it or None; a new tensor."""
    return None if why_other_gate(layer) else rms_norm_gated(layer, x, z)


MODULES = ("vllm.model_executor.layers.layernorm",)

ADAPTER = Adapter("RMSNormGated", MODULES, OPS, rms_norm_gated_specs, forward, why_other_gate, needs_cpp=False)
