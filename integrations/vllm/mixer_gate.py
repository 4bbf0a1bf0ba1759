"""The gate of a gated delta net, read where its projection left it.

vLLM 0.25 makes rows of the heads of z before their norm. Tokens lie apart in the projection's result, so that is a
copy, in a kernel of each layer. Our operator takes the heads as they lie. Since vLLM 0.32 heads stay heads.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from serving_ops.integrations.vllm import features, installed
from serving_ops.integrations.vllm.known_code import is_one_of, names_of, parameters_of, why_lacking

MIXERS = {"QwenGatedDeltaNetAttention": "vllm.model_executor.layers.mamba.gdn.qwen_gdn_linear_attn"}
"""The name of a mixer's class -> its module."""

METHOD = "_output_projection"
STEPS = {"shape", "reshape", "norm", "flatten", "out_proj"}
"""The names that this method of vLLM 0.25 uses."""

PARAMETERS = {"self", "core_attn_out", "z", "output", "num_tokens"}

GATED = "rms_norm_gated"
"""The operator that reads the gate."""

IN_PLACE = "serving_ops_mixer_gate"
"""The attribute of each mixer that is on."""

mixers_on: list[str] = []
"""The classes of the loaded model's mixers that are on: compiled graphs depend on them."""


def take(models: Iterable[torch.nn.Module]) -> str | None:
    """Have the mixers of a loaded model hand their gates on as they lie; returns a phrase for the start-up line."""
    may = GATED in features.ops() and features.COMPILE_CACHE not in installed.failures
    mixers = [mixer for model in models for mixer in model.modules() if may and _fits(mixer)]
    mixers_on[:] = installed.take_over(mixers, METHOD, _with_ours, IN_PLACE)
    installed.on_undo(mixers_on.clear)
    return f"no copy of the gate of {len(mixers)} mixers" if mixers else None


def _fits(mixer: Any) -> bool:
    if not is_one_of(MIXERS, mixer) or why_lacking(mixer, "norm", METHOD) or getattr(mixer.norm, "stay_native", True):
        return False
    method = getattr(mixer, METHOD)
    return names_of(method) == STEPS and parameters_of(method) == PARAMETERS


def _with_ours(original: Any) -> Any:
    @functools.wraps(original)
    def project_without_a_copy(self: Any, core_attn_out: Tensor, z: Tensor, output: Any, num_tokens: int) -> None:
        if getattr(self, IN_PLACE, False):
            project(self, core_attn_out, z, output, num_tokens)
        else:
            original(self, core_attn_out, z, output, num_tokens)

    return project_without_a_copy


def project(mixer: Any, core_attn_out: Tensor, z: Tensor, output: Any, num_tokens: int) -> None:
    """`QwenGatedDeltaNetAttention._output_projection`: core_attn_out and z (num_tokens, heads, head_dim). It writes
    output, (num_tokens, hidden_size)."""
    output[:num_tokens], _ = mixer.out_proj(mixer.norm(core_attn_out, z).flatten(-2))
