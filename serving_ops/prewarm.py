"""Compile, before the first request, what a model's norms will ask for."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from serving_ops import plan
from serving_ops.ops.fused_add_rms_norm import fused_add_rms_norm
from serving_ops.ops.rms_norm import rms_norm
from serving_ops.ops.rms_norm_gated import rms_norm_gated

logger = logging.getLogger("serving_ops")

Op = Literal["fused_add_rms_norm", "rms_norm", "rms_norm_gated"]


@dataclass(frozen=True)
class NormSpec:
    """One norm of a model: what its layer fixes. The number of rows is not part of it: kernels take any.

    size: N, the elements of a row (a tensor-parallel shard's, where it is sharded).
    heads: rows a token: q/k norms and gated norms see (num_tokens, heads, size).
    token_stride, gate_token_stride: elements from token to token of x and of z where they are views of a wider
        buffer; None for contiguous tensors.
    """

    op: Op
    size: int
    dtype: torch.dtype
    weight_dtype: torch.dtype | None
    device: torch.device
    eps: float = 1e-6
    weight_offset: float = 0.0
    activation: str = "silu"
    norm_before_gate: bool = True
    group_size: int | None = None
    has_bias: bool = False
    has_gate: bool = True
    heads: int = 1
    token_stride: int | None = None
    gate_token_stride: int | None = None


@dataclass
class PrewarmReport:
    """What `prewarm` did: specs warmed, seconds it took, and for each spec that failed, why."""

    warmed: list[NormSpec] = field(default_factory=list)
    failed: dict[NormSpec, str] = field(default_factory=dict)
    seconds: float = 0.0


def prewarm(norms: Iterable[NormSpec]) -> PrewarmReport:
    """Compile or load every kernel that these norms can ask for, and run each once on tiny tensors.

    After it, no call that matches a spec compiles, whatever its number of rows. On CPU it runs each norm once, which
    loads and chooses the C++ kernels. A norm that fails is logged once and reported; nothing is raised.
    """
    report = PrewarmReport()
    started = time.perf_counter()
    for spec in dict.fromkeys(norms):
        try:
            _warm(spec)
            report.warmed.append(spec)
        except Exception as error:  # whatever Triton or the driver raises must not stop a server
            report.failed[spec] = f"{type(error).__name__}: {error}"
            logger.warning("prewarm of %s failed, it stays as it is: %s", spec, error)
    report.seconds = time.perf_counter() - started
    return report


def _warm(spec: NormSpec) -> None:
    """Call the op itself, so that exactly the plans, flags and layouts that serving asks for are compiled.

    One token alone collapses a strided view to plain rows, two do not, and more change the plan.
    """
    tokens = {1, 2}
    if spec.device.type == "cuda":
        groups = spec.heads * (spec.size // spec.group_size if spec.group_size else 1)
        tokens |= {-(-rows // groups) for rows in plan.rows_to_prewarm(spec.group_size or spec.size)}
    for num_tokens in sorted(tokens):
        _call(spec, num_tokens)
    if spec.device.type == "cuda":
        torch.cuda.synchronize(spec.device)


def _call(spec: NormSpec, num_tokens: int) -> None:
    x = _rows(spec, num_tokens, spec.token_stride)
    weight = _vector(spec, spec.weight_dtype)
    if spec.op == "fused_add_rms_norm":
        residual = _rows(spec, num_tokens, spec.token_stride)
        fused_add_rms_norm(x, residual, weight, spec.eps, weight_offset=spec.weight_offset)
    elif spec.op == "rms_norm":
        rms_norm(x, weight, spec.eps, weight_offset=spec.weight_offset)
    else:
        rms_norm_gated(
            x,
            _rows(spec, num_tokens, spec.gate_token_stride) if spec.has_gate else None,
            weight,
            spec.eps,
            bias=_vector(spec, spec.weight_dtype) if spec.has_bias else None,
            norm_before_gate=spec.norm_before_gate,
            activation=spec.activation,
            group_size=spec.group_size,
        )


def _rows(spec: NormSpec, num_tokens: int, token_stride: int | None) -> Tensor:
    """(num_tokens, heads, size), or (num_tokens, size) for one head, laid out as the layer's rows are."""
    width = spec.heads * spec.size
    buffer = torch.ones(num_tokens, token_stride or width, dtype=spec.dtype, device=spec.device)
    rows = buffer[:, :width]
    return rows if spec.heads == 1 else rows.unflatten(1, (spec.heads, spec.size))


def _vector(spec: NormSpec, dtype: torch.dtype | None) -> Tensor | None:
    return None if dtype is None else torch.ones(spec.size, dtype=dtype, device=spec.device)
