"""vLLM's `RMSNorm` on our operators, where vLLM's layer does not call vLLM's IR.

There are two such cases: vLLM has no IR, or VLLM_BATCH_INVARIANT=1 is set and the model runs in eager mode on CUDA. In
the second case vLLM's layer calls batch-invariant kernels. Our kernels are batch-invariant too.

As in `priority`, Inductor keeps the norms of heads in compiled CUDA models (see ir_providers.ROWS_PROVIDER). With a
residual, both arguments are written, as vLLM's layer does.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from serving_ops import NormSpec
from serving_ops.integrations.common.calls import NORMS as OPS
from serving_ops.integrations.common.calls import norm
from serving_ops.integrations.common.norm_specs import norms_of
from serving_ops.integrations.common.rounding import WEIGHT_IN_FP32
from serving_ops.integrations.vllm.adapter import HEADS_IN_ONE_KERNEL, Activations, Adapter

PART_OF_ROW = "its variance is over a part of the row"


def is_of_part(layer: Any) -> bool:
    """Return whether the variance is over a part of the row."""
    return getattr(layer, "variance_size_override", None) is not None


def why_native(layer: Any, x: Activations) -> str | None:
    """Return why vLLM keeps the layer, or None: it norms parts of rows, or Inductor is faster."""
    if is_of_part(layer):
        return PART_OF_ROW
    return HEADS_IN_ONE_KERNEL if x.leaves_heads_to_inductor(layer) else None


def specs(layer: Any, x: Activations) -> tuple[NormSpec, ...]:
    """Return the norms of hidden states with and without a residual, or of heads."""
    return norms_of(layer, layer.weight if layer.has_weight else None, x, WEIGHT_IN_FP32)


def forward(layer: Any, x: Tensor, residual: Tensor | None = None) -> Any:
    """`RMSNorm.forward_cuda`: x (..., N); with a residual like x, both are written and returned."""
    if is_of_part(layer):
        return None
    return norm(x, residual, layer.weight if layer.has_weight else None, layer.variance_epsilon, WEIGHT_IN_FP32)


def forward_native(layer: Any, x: Tensor, residual: Tensor | None = None) -> Any:
    """As `forward`, except that Inductor keeps norms of heads on CUDA."""
    return None if x.is_cuda and x.dim() != 2 and residual is None else forward(layer, x, residual)


MODULES = ("vllm.model_executor.layers.layernorm",)

ADAPTER = Adapter("RMSNorm", MODULES, OPS, specs, forward, why_native, forward_native)
