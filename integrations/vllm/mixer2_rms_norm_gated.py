"""vLLM's `Mixer2RMSNormGated` on our operator: Mamba-2 layers build it by the old name.

It gates with SiLU, then norms groups. vLLM's own rounds the normed row before its weight; ours rounds once, at the end.
Where a group's variance is spread over tensor-parallel ranks, vLLM's own code runs. Eager, one core (Zen 5), one group
of 2048: 7.6 us a row where vLLM's takes 19, and 0.29 ms for 512 rows where it takes 5.6. On an H200 the device time of
a Mamba-2's eager decode step falls by 2 to 4% (bench_e2e/results/turns-h200-mamba2-eager.json).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from serving_ops.integrations.common.gated_layers import OPS, mixer2, mixer2_specs, why_not_mixer2
from serving_ops.integrations.vllm.adapter import Adapter


def forward(layer: Any, x: Tensor, gate: Tensor) -> Any:
    """`Mixer2RMSNormGated.forward_cuda`: x (..., N), gate like it; a new tensor."""
    return None if why_not_mixer2(layer) else mixer2(layer, x, gate)


MODULES = ("vllm.model_executor.layers.mamba.mamba_mixer2",)

ADAPTER = Adapter("Mixer2RMSNormGated", MODULES, OPS, mixer2_specs, forward, why_not_mixer2)
