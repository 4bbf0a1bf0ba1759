"""The classes of norms that both engines have: what their layers may call, and what is beyond our operators."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import serving_ops
from serving_ops import NormSpec
from serving_ops.checks import ACTIVATIONS
from serving_ops.integrations.common.calls import gated
from serving_ops.ops.registry import sample

NORMS: tuple[str, ...] = ("rms_norm", "fused_add_rms_norm")
GATED: tuple[str, ...] = ("rms_norm_gated",)

WEIGHT_IN_FP32 = torch.finfo(torch.float32).tiny
"""A `weight_offset` that is too small to change a weight. It makes `rms_norm` and `fused_add_rms_norm` apply a weight
of x's dtype in fp32 and round once. Without an offset they round before the weight too.

SGLang's kernels round once. vLLM's IR ops are written with two roundings, and have them in eager mode; in compiled
models Inductor leaves the first one out. One rounding is nearer to fp32, so both engines get it: an eager bf16 SmolLM2
on CPU has 0.92 of the mean KL divergence from fp32 that it has with vLLM's two (docs/accuracy.md). A weight of zero
gives 1e-38 of the normed row, which is 0 in fp16 and nearly 0 in bf16."""

GEMMA_OFFSET = 1.0
"""A `GemmaRMSNorm` has its weight as the difference from one."""

SILU = "swish"
"""What the layers without an `activation` of their own gate with."""

VIEW_HEADS = 2
"""Rows a token of a view that stands for every head-wise view: kernels tell one from many, not how many."""

VIEW_SPACING = 4
"""Token stride of that view, in its own widths: kernels tell rows that start on 16 bytes from others, no more."""


@dataclass(frozen=True)
class Activations:
    """A model's activations: their dtype, and the widths of hidden states and of a head.

    device: None where it is each weight's.
    """

    dtype: torch.dtype
    hidden_size: int
    head_size: int = 0
    device: torch.device | None = None

    def spec(self, op: str, size: int, weight: Any, **options: Any) -> NormSpec:
        """Return a norm of rows of this size, scaled by this weight, or by None where the device is known."""
        device = weight.device if self.device is None else self.device
        return NormSpec(op, size, self.dtype, None if weight is None else weight.dtype, device, **options)


@dataclass(frozen=True)
class Adapter:
    """One of an engine's classes.

    name: the class's name in the start-up line.
    defined_in: the modules that define it; engines move classes.
    ops: what it calls; a class is left to the engine where SERVING_OPS leaves out one of them.
    specs: takes a layer and its activations; returns the norms that the layer may call.
    forward: takes a layer and the arguments of the engine's method.
    why_native: takes a layer; returns what it does that our operators cannot, or None.
    """

    name: str
    defined_in: tuple[str, ...]
    ops: tuple[str, ...]
    specs: Callable[[Any, Activations], tuple[NormSpec, ...]]
    forward: Callable[..., Any]
    why_native: Callable[[Any], str | None] = lambda layer: None


def why_reference(specs: Iterable[NormSpec]) -> str | None:
    """Return the first of these norms that no kernel takes, with the reason; None if kernels take all."""
    for spec in specs:
        explanation = serving_ops.explain(spec.op, **sample(spec))
        if explanation.path == "reference":
            return f"{spec.op} has no kernel for it: {explanation.reason}"
    return None


def _as_view(spec: NormSpec) -> NormSpec:
    """The same norm on heads that lie inside wider rows, as q, k and z do in the projections' results."""
    stride = {"gate_token_stride" if spec.op in GATED else "token_stride": VIEW_SPACING * VIEW_HEADS * spec.size}
    return dataclasses.replace(spec, heads=VIEW_HEADS, **stride)


def _norms(layer: Any, x: Activations, weight_offset: float) -> tuple[NormSpec, ...]:
    """The norms of hidden states with and without a residual, or of heads."""
    options = {"eps": layer.variance_epsilon, "weight_offset": weight_offset}
    specs = [x.spec(op, layer.weight.numel(), layer.weight, **options) for op in NORMS]
    if not getattr(layer, "has_weight", True):
        specs = [dataclasses.replace(spec, weight_dtype=None) for spec in specs]
    return tuple(specs) if specs[0].size == x.hidden_size else (*specs, _as_view(specs[0]))


def rms_norm_specs(layer: Any, x: Activations) -> tuple[NormSpec, ...]:
    """Of an `RMSNorm`."""
    return _norms(layer, x, WEIGHT_IN_FP32)


def gemma_specs(layer: Any, x: Activations) -> tuple[NormSpec, ...]:
    """Of a `GemmaRMSNorm`."""
    return _norms(layer, x, GEMMA_OFFSET)


def why_other_gate(layer: Any) -> str | None:
    """Return by what a gated layer gates that our operator does not, or None."""
    activation = getattr(layer, "activation", SILU)
    return None if activation in ACTIVATIONS else f"it gates with {activation}"


def gated_specs(layer: Any, x: Activations) -> tuple[NormSpec, ...]:
    """Of an `RMSNormGated`: rows, and heads gated by a view."""
    spec = x.spec(
        *GATED,
        layer.weight.numel(),
        layer.weight,
        eps=layer.eps,
        has_bias=layer.bias is not None,
        norm_before_gate=layer.norm_before_gate,
        activation=getattr(layer, "activation", SILU),
        group_size=layer.group_size,
    )
    return spec, _as_view(spec)


def rms_norm_gated(layer: Any, x: Tensor, z: Tensor | None) -> Tensor | None:
    """The call of an `RMSNormGated`."""
    options = layer.bias, layer.norm_before_gate, getattr(layer, "activation", SILU), layer.group_size
    return gated(x, z, layer.weight, layer.eps, *options)


def fused_gated_specs(layer: Any, x: Activations) -> tuple[NormSpec, ...]:
    """Of a `FusedRMSNormGated`: rows, and heads gated by a view."""
    spec = x.spec(*GATED, layer.hidden_size, layer.weight, eps=layer.eps, activation=layer.activation)
    return spec, _as_view(spec)


def why_not_mixer2(layer: Any) -> str | None:
    """Return what a `Mixer2RMSNormGated` does beyond a gated norm of this rank's rows, or None."""
    if not layer.use_rms_norm:
        return "it gates without a norm"
    if layer.n_groups % layer.tp_size != 0:
        return "its groups are spread over tensor-parallel ranks"
    return None


def mixer2_specs(layer: Any, x: Activations) -> tuple[NormSpec, ...]:
    """Of a `Mixer2RMSNormGated`: rows whose gate is the first columns of a projection."""
    size = layer.weight.numel()
    options = {"norm_before_gate": False, "group_size": layer.group_size, "gate_token_stride": VIEW_SPACING * size}
    return (x.spec(*GATED, size, layer.weight, eps=layer.variance_epsilon, **options),)


def mixer2(layer: Any, x: Tensor, gate: Tensor) -> Tensor | None:
    """The call of a `Mixer2RMSNormGated`."""
    return gated(x, gate, layer.weight, layer.variance_epsilon, None, False, SILU, layer.group_size)


def rope_options(spec: NormSpec) -> dict[str, Any]:
    """Return what a layer gives `qk_norm_rope` as options, without defaults of the rare ones: each costs host time."""
    rope = spec.rotation
    options = {
        "num_q_heads": spec.heads,
        "num_kv_heads": rope.num_kv_heads,
        "head_dim": spec.size,
        "eps": spec.eps,
        "weight_offset": spec.weight_offset,
        "rotary_dim": rope.rotary_dim,
        "is_neox": rope.is_neox,
    }
    if rope.mrope_section is None:
        return options
    return options | {"mrope_section": rope.mrope_section, "mrope_interleaved": rope.mrope_interleaved}
