"""The norms that a layer may ask for: those on views, and whether a kernel takes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import serving_ops
from serving_ops import NormSpec
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


def why_reference(specs: Iterable[NormSpec]) -> str | None:
    """Return the first of these norms that no kernel takes, with the reason; None if kernels take all."""
    for spec in specs:
        explanation = serving_ops.explain(spec.op, **sample(spec))
        if explanation.path == "reference":
            return f"{spec.op} has no kernel for it: {explanation.reason}"
    return None
