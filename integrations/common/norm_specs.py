"""The norms that a layer may ask for: those on views, and whether a kernel takes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any

from torch import Tensor

import serving_ops
from serving_ops import NormSpec
from serving_ops.integrations.common.calls import NORMS
from serving_ops.ops.registry import sample

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


def norms_of(layer: Any, weight: Tensor | None, x: Any, weight_offset: float) -> tuple[NormSpec, ...]:
    """Return the norms of an engine's layer without a gate: hidden states with and without a residual, or heads.

    x: the engine's `Activations`.
    """
    size, options = layer.weight.numel(), {"eps": layer.variance_epsilon, "weight_offset": weight_offset}
    specs = tuple(x.spec(op, size, weight, **options) for op in NORMS)
    return specs if size == x.hidden_size else (*specs, as_view(specs[0]))


def why_reference(specs: Iterable[NormSpec]) -> str | None:
    """Return the first of these norms that no kernel takes, with the reason; None if kernels take all."""
    for spec in specs:
        explanation = serving_ops.explain(spec.op, **sample(spec))
        if explanation.path == "reference":
            return f"{spec.op} has no kernel for it: {explanation.reason}"
    return None
