"""vLLM's pass that fuses norms with FP8 quantization, turned on for models with one scale per token.

vLLM leaves the pass off there, because its own fused kernel is slower than the one that Inductor makes of both. Ours is
faster: with the pass on, a decode step of Qwen3-0.6B on an H200 (vLLM 0.25.1, 2026-11-28) took 0.981 of vLLM's time at
batch 1, and 0.976 at batch 16, and the first token of a prompt of 8192 tokens 0.975.

The choice needs both ends of vLLM's start-up. Whether the user chose is known only before vLLM's defaults are applied,
and what the layers are only after they were loaded, in a process that may be another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from serving_ops import NormSpec
from serving_ops.integrations.common.norm_classes import WEIGHT_IN_FP32
from serving_ops.integrations.vllm import linear_kernels, quant_fusion
from serving_ops.integrations.vllm.compilation import is_in_pieces
from serving_ops.integrations.vllm.layers import NormLayer

EPS = (1e-5, 1e-6)
"""The values for which vLLM's pass has patterns."""

_MARK = "_serving_ops_left_to_vllm"


def remember_choice(vllm_config: Any) -> None:
    """Note on a configuration, before vLLM's defaults are applied, that the user left the pass to vLLM."""
    passes = vllm_config.compilation_config.pass_config
    if passes.fuse_norm_quant is None:
        setattr(passes, _MARK, True)


def take(models: Sequence[torch.nn.Module], found: Iterable[NormLayer], vllm_config: Any) -> str | None:
    """Take what vLLM's pass fuses, or could fuse; returns a phrase for the start-up line, or None.

    vLLM reads whether the pass runs when it first compiles, after the model was loaded. Raises as `quant_fusion.take`.
    """
    plain = [spec for layer in found for spec in layer.specs]
    fused = quant_fusion.specs(models, plain, vllm_config)
    turns_on = should_run(models, plain, vllm_config)
    if not fused or not (turns_on or quant_fusion.is_for(vllm_config)):
        return None
    quant_fusion.take(fused)
    if turns_on:
        vllm_config.compilation_config.pass_config.fuse_norm_quant = True
    return "where vLLM's pass fuses norms with FP8, our kernels run"


def should_run(models: Sequence[torch.nn.Module], plain: Iterable[NormSpec], vllm_config: Any) -> bool:
    """Return whether to turn the pass on for loaded models, whose norms are `plain`.

    The models run as those that were measured: compiled, on one GPU, without adapters, every quantized layer in
    CUTLASS's kernel with one scale per token, and every norm of whole rows as the pass matches it.
    """
    compilation = vllm_config.compilation_config
    return bool(
        quant_fusion.can_run()
        and getattr(compilation.pass_config, _MARK, False)
        and not compilation.pass_config.fuse_norm_quant
        and is_in_pieces(compilation)
        and compilation.backend == "inductor"
        and vllm_config.parallel_config.tensor_parallel_size == 1
        and vllm_config.lora_config is None
        and _quantizes_tokens(models)
        and _matches(plain, vllm_config.model_config)
    )


def _quantizes_tokens(models: Sequence[torch.nn.Module]) -> bool:
    from vllm.model_executor.kernels.linear.scaled_mm.cutlass import CutlassFP8ScaledMMLinearKernel
    from vllm.model_executor.layers.quantization.utils.quant_utils import kFp8DynamicTokenSym

    kernels = [linear_kernels.kernel_of(linear) for linear in linear_kernels.quantized_linears(models)]
    return bool(kernels) and all(
        isinstance(kernel, CutlassFP8ScaledMMLinearKernel) and kernel.config.activation_quant_key == kFp8DynamicTokenSym
        for kernel in kernels
    )


def _matches(plain: Iterable[NormSpec], model: Any) -> bool:
    rows = quant_fusion.of_whole_rows(plain, model)
    return bool(rows) and all(
        spec.dtype == spec.weight_dtype == torch.bfloat16 and spec.eps in EPS and spec.weight_offset == WEIGHT_IN_FP32
        for spec in rows
    )
