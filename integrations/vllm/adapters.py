"""vLLM's classes of norms on our operators: vLLM's models build each by its old name.

`RMSNorm` asks vLLM's IR, where `ir_providers` serves it. The class is replaced where VLLM_BATCH_INVARIANT=1 has it call
batch-invariant kernels in eager mode on CUDA instead; our kernels are batch-invariant too.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from serving_ops.integrations.common import calls, norm_classes
from serving_ops.integrations.common.norm_classes import GATED, GEMMA_OFFSET, NORMS, WEIGHT_IN_FP32
from serving_ops.integrations.vllm.known_code import why_lacking

BOTH_METHODS = ("forward_native", "forward_cuda")
"""The first serves compiled mode on every device and, through `CustomOp.forward_cpu`, eager mode on CPU; the second
serves eager mode on CUDA."""


@dataclass(frozen=True)
class Adapter(norm_classes.Adapter):
    """As there, by vLLM's name of the class. `forward` returns None for what the kernels do not take; vLLM's then runs.

    methods: those that are replaced.
    needs_cpp: whether vLLM keeps the class on CUDA without the C++ launcher, because it was only measured with it.
    asks_ir: whether vLLM's class calls vLLM's IR; a priority that the user gave to the IR then holds for ours too.
    """

    methods: tuple[str, ...] = BOTH_METHODS
    needs_cpp: bool = True
    asks_ir: bool = False

    def vllms_class(self) -> Any:
        """Return the class from the first of its modules that this vLLM has. Raises ImportError if it has none."""
        for module in self.defined_in:
            try:
                return getattr(importlib.import_module(module), self.name)
            except ModuleNotFoundError as error:
                missing = error
        raise missing

    def is_of(self, cls: type) -> bool:
        """Return whether `cls` is vLLM's class or a subclass of it."""
        return any(base.__name__ == self.name and base.__module__ in self.defined_in for base in cls.__mro__)


def why_part(layer: Any) -> str | None:
    """Return that the variance is over a part of the row, or None."""
    return None if getattr(layer, "variance_size_override", None) is None else "its variance is over a part of the row"


def _rms_norm(layer: Any, x: Tensor, residual: Tensor | None = None) -> Any:
    """`RMSNorm.forward_cuda`: x (..., N); with a residual like x, both are written and returned."""
    if layer.variance_size_override is not None:
        return None
    weight = layer.weight if layer.has_weight else None
    return calls.norm(x, residual, weight, layer.variance_epsilon, WEIGHT_IN_FP32)


def _why_not_rms_norm(layer: Any) -> str | None:
    return why_lacking(layer, "variance_size_override", "has_weight") or why_part(layer)


def _gemma(layer: Any, x: Tensor, residual: Tensor | None = None) -> Any:
    """`GemmaRMSNorm.forward_native`, which adds 1 to its weight at every call, and asks vLLM's IR for new tensors: an
    in-place provider clones twice for it.

    On CPU a row of 1024 takes 13 us so, and 6 here; on an H200, a token of a hybrid takes 0.64 of vLLM's time eager,
    through the IR provider 0.75.
    """
    return calls.norm(x, residual, layer.weight, layer.variance_epsilon, GEMMA_OFFSET)


def _gated(layer: Any, x: Tensor, z: Tensor | None = None) -> Any:
    """`RMSNormGated.forward_cuda`: x (..., N), z like it or None; a new tensor.

    Eager, CUDA's flash-linear-attention kernel copies a strided z and CPU has no fused one; compiled, Inductor's code
    competes, and `bench_e2e ops --regime gated` times both.
    """
    return None if norm_classes.why_other_gate(layer) else norm_classes.rms_norm_gated(layer, x, z)


def _mixer2(layer: Any, x: Tensor, gate: Tensor) -> Any:
    """`Mixer2RMSNormGated.forward_cuda`: x (..., N), gate like it; a new tensor. vLLM's rounds before its weight too.

    Eager, one core (Zen 5), one group of 2048: 7.6 us a row where vLLM's takes 19, and 0.29 ms for 512 rows where it
    takes 5.6. On an H200 the device time of a Mamba-2's eager decode step falls by 2 to 4%
    (bench_e2e/results/turns-h200-mamba2-eager.json).
    """
    return None if norm_classes.why_not_mixer2(layer) else norm_classes.mixer2(layer, x, gate)


def _fused_gated(
    layer: Any,
    x: Tensor,
    g: Tensor,
    residual: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
) -> Any:
    """`FusedRMSNormGated.forward_cuda`: x (..., N), g with the same rows; a new tensor of x's shape.

    On one core (Zen 5), eager, 32 heads of 128, one token takes 7.4 us and vLLM's class takes 19; 512 tokens take 0.44
    ms and vLLM's class takes 3.7. On CUDA vLLM runs the kernel of flash-linear-attention, or Inductor's; the gated
    regime of bench_e2e/results/ops-h200.json has both beside ours. No engine with it has been measured on CUDA.
    """
    if residual is not None or prenorm:
        return None
    return calls.gated(x, g, layer.weight, layer.eps, None, True, layer.activation, None)


_LAYERNORM = ("vllm.model_executor.layers.layernorm",)
_MIXER2 = ("vllm.model_executor.layers.mamba.mamba_mixer2",)
_KDA = ("vllm.third_party.flash_linear_attention.ops.kda", "vllm.model_executor.layers.fla.ops.kda")
"""The second is vLLM 0.25's. Newer ones have another class of the name, which cannot be imported beside it."""

RMS_NORM = Adapter(
    "RMSNorm", _LAYERNORM, NORMS, norm_classes.rms_norm_specs, _rms_norm, _why_not_rms_norm, methods=("forward_cuda",)
)
GEMMA_RMS_NORM = Adapter("GemmaRMSNorm", _LAYERNORM, NORMS, norm_classes.gemma_specs, _gemma, asks_ir=True)
_GATED = Adapter(
    "RMSNormGated", _LAYERNORM, GATED, norm_classes.gated_specs, _gated, norm_classes.why_other_gate, needs_cpp=False
)
_OF_STATE_SPACE = (
    Adapter("Mixer2RMSNormGated", _MIXER2, GATED, norm_classes.mixer2_specs, _mixer2, norm_classes.why_not_mixer2),
    Adapter("FusedRMSNormGated", _KDA, GATED, norm_classes.fused_gated_specs, _fused_gated),
)

STATE_SPACE = tuple(adapter.name for adapter in _OF_STATE_SPACE)
"""The classes that only models with state-space layers build."""

ADAPTERS = {adapter.name: adapter for adapter in (RMS_NORM, _GATED, GEMMA_RMS_NORM, *_OF_STATE_SPACE)}
