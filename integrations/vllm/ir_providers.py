"""Providers of vLLM's IR ops `rms_norm` and `fused_add_rms_norm`.

A provider's body is one operator call: Inductor's lowering traces it, and so does Dynamo on CPU. The predicates run on
the hot path of eager mode and are traced too, so they read metadata only. A call that they refuse goes to the next
provider; vLLM's native provider is the last one.

vLLM's definition (vllm/ir/ops/layernorm.py) rounds before a weight of x's dtype, and Inductor leaves that rounding out.
We round once, as Inductor does (see `WEIGHT_IN_FP32`).
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from serving_ops.integrations.common.calls import may_add, rows_fit
from serving_ops.integrations.common.norm_classes import WEIGHT_IN_FP32
from serving_ops.integrations.vllm import installed

PROVIDER = "serving_ops"

ROWS_PROVIDER = "serving_ops_rows"
"""`rms_norm` of whole rows only. Inductor computes the q and the k norm of a layer in one kernel; two of our kernels
take 2 us longer. A token of Qwen3-0.6B takes 1.57 ms of device time with vLLM 0.25.1 on an H200, 1.55 to 1.56 ms with
our norms for whole rows, and 1.63 ms with our norms for heads too."""

OURS = {PROVIDER, ROWS_PROVIDER}


def rms_norm_supports(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> bool:
    """Return whether the variance is over whole, dense rows, in a dtype that the kernels compute."""
    return variance_size is None and rows_fit(x, weight)


def rms_norm_of_rows_supports(
    x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> bool:
    """As `rms_norm_supports`, for x of shape (num_tokens, N): each row is a token."""
    return x.dim() == 2 and rms_norm_supports(x, weight, epsilon, variance_size)


def rms_norm(x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None) -> Tensor:
    """vLLM's `ir.ops.rms_norm`: x (..., N) in any leading strides; a new contiguous tensor."""
    return torch.ops.serving_ops.rms_norm.default(x, weight, epsilon, WEIGHT_IN_FP32)


def fused_add_rms_norm_supports(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> bool:
    """As `rms_norm_supports`. Both tensors are written, so they must be distinct, with one shape and dtype."""
    return variance_size is None and rows_fit(x, weight) and may_add(x, x_residual)


def fused_add_rms_norm(
    x: Tensor, x_residual: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
) -> tuple[Tensor, Tensor]:
    """vLLM's `ir.ops.fused_add_rms_norm`, in place on both; vLLM clones where it needs the inputs later."""
    torch.ops.serving_ops.fused_add_rms_norm.default(x, x_residual, weight, epsilon, WEIGHT_IN_FP32)
    return x, x_residual


def _register(op: Any, provider: str, body: Any, supports: Any, *, inplace: bool = False) -> None:
    if provider in op.impls:
        return
    op.register_impl(provider, supports_args=supports, inplace=inplace)(body)
    installed.on_undo(functools.partial(_unregister, op, provider))


def _unregister(op: Any, provider: str) -> None:
    order = op.get_priority()
    if provider in order:
        op.set_default([other for other in order if other != provider])
    del op.impls[provider]


def install() -> None:
    """Register the providers with vLLM's IR, once a process."""
    from vllm import ir

    _register(ir.ops.rms_norm, PROVIDER, rms_norm, rms_norm_supports)
    _register(ir.ops.rms_norm, ROWS_PROVIDER, rms_norm, rms_norm_of_rows_supports)
    _register(ir.ops.fused_add_rms_norm, PROVIDER, fused_add_rms_norm, fused_add_rms_norm_supports, inplace=True)
