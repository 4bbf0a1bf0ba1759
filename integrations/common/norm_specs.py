"""The norms that a layer may ask for: those on views, one call of each, and whether a kernel takes it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

import torch

import serving_ops
from serving_ops import NormSpec

VIEW_HEADS = 2
"""Rows a token of a view that stands for every head-wise view: kernels tell one from many, not how many."""

VIEW_SPACING = 4
"""Token stride of that view, in its own widths: kernels tell rows that start on 16 bytes from others, no more."""


def as_view(spec: NormSpec) -> NormSpec:
    """The same norm on heads that lie inside wider rows, as q, k and z do in the projections' results."""
    stride = VIEW_SPACING * VIEW_HEADS * spec.size
    if spec.op == "rms_norm_gated":
        return dataclasses.replace(spec, heads=VIEW_HEADS, gate_token_stride=stride)
    return dataclasses.replace(spec, heads=VIEW_HEADS, token_stride=stride)


def sample_arguments(spec: NormSpec) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments of one call of a norm, with one token: what `serving_ops.explain` and vLLM's IR are asked about."""
    shape = (1, spec.size) if spec.heads == 1 else (1, spec.heads, spec.size)
    row = torch.empty(shape, dtype=spec.dtype, device=spec.device)
    weight = None
    if spec.weight_dtype is not None:
        weight = torch.empty(spec.size, dtype=spec.weight_dtype, device=spec.device)
    if spec.op == "rms_norm":
        return (row, weight, spec.eps), {}
    if spec.op == "fused_add_rms_norm":
        return (row, torch.empty_like(row), weight, spec.eps), {}
    options = {"norm_before_gate": spec.norm_before_gate, "activation": spec.activation, "group_size": spec.group_size}
    return (row, torch.empty_like(row), weight, spec.eps), options


def why_reference(specs: Iterable[NormSpec]) -> str | None:
    """Which of these norms no kernel takes, and why; None where kernels take all."""
    for spec in specs:
        args, kwargs = sample_arguments(spec)
        explanation = serving_ops.explain(spec.op, *args, **kwargs)
        if explanation.path == "reference":
            return f"{spec.op} has no kernel for it: {explanation.reason}"
    return None
