"""SGLang's classes of norms on our operators.

With a residual, a norm writes both arguments, as SGLang's kernels do. Without one it writes nothing: callers use x
afterwards. A row's bits do not depend on the batch, so batch-invariant mode, in which SGLang adds and norms in eager
PyTorch, needs no special code. On CPU SGLang has no code for gated norms, unless the CPU has AMX.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from serving_ops.integrations.common import calls, norm_classes
from serving_ops.integrations.common.norm_classes import GATED, GEMMA_OFFSET, NORMS, WEIGHT_IN_FP32

KEPT = "sglangs_forward"
"""The attribute that keeps SGLang's own method on a layer that we have switched over."""

QUANTIZES = "its consumer quantizes to FP8"
"""The reason for a norm that SGLang fuses with FP8 quantization. Any other quantization is a kernel after the norm."""

BEYOND = {
    "variance_size_override": "its variance is over a part of the row",
    "cast_x_before_out_mul": "it rounds before its weight",
    "fp32_residual": "it keeps its residual in fp32",
    "override_orig_dtype": "its result has a dtype of its own",
    "x_pad_to_multiple": "it pads its rows",
}
"""An attribute of an `RMSNorm` -> what it makes the layer do that ours cannot. None, False or 0 is off."""


@dataclass(frozen=True)
class Adapter(norm_classes.Adapter):
    """As there. `forward` replaces SGLang's method once bound to a layer, and gives `native` what kernels do not take.

    sglangs: SGLang's name of the class, if it is not `name`.
    """

    sglangs: str = ""

    def serves(self, cls: type) -> bool:
        """Return whether `cls` is the class, or a subclass that does not override its forward methods."""
        for base in cls.__mro__:
            if base.__name__ == (self.sglangs or self.name) and base.__module__ in self.defined_in:
                return True
            if any(name.startswith("forward") for name in vars(base)):
                return False
        return False


def given(more: tuple[object, ...], others: dict[str, object]) -> bool:
    """Whether any argument beyond those that an adapter knows is not None; most calls have no such argument."""
    return bool(more or others) and any(value is not None for value in (*more, *others.values()))


def native(layer: Any) -> Callable[..., Any]:
    """SGLang's own method for a layer that is ours; while the model is compiled, the one that can be traced."""
    compiled = getattr(layer, "is_torch_compile", False)
    return layer.forward_native if compiled else layer.sglangs_forward


def why_native_rms_norm(layer: Any) -> str | None:
    """Return what an `RMSNorm` does beyond a norm of whole rows, or None."""
    if _quantizes(layer):
        return QUANTIZES
    return next((reason for name, reason in BEYOND.items() if getattr(layer, name, None)), None)


def _quantizes(layer: Any) -> bool:
    """Return whether SGLang writes the result in FP8. Since 0.5.23 a norm may know the projection that reads it."""
    projection = getattr(layer, "_quant_linear", None)
    if projection is None:
        return False
    from sglang.srt.layers import layernorm

    return layernorm._fp8_static_input_scale(projection) is not None


def _norm(weight_offset: float) -> Callable[..., Any]:
    def forward(layer: Any, x: Tensor, residual: Tensor | None = None, *more: Any, **others: Any) -> Any:
        """x (..., N); with a residual like x, both are written and returned."""
        weight, ours = layer.weight if getattr(layer, "has_weight", True) else None, None
        if not given(more, others):
            ours = calls.norm(x, residual, weight, layer.variance_epsilon, weight_offset)
        return native(layer)(x, residual, *more, **others) if ours is None else ours

    return forward


rms_norm, _gemma = _norm(WEIGHT_IN_FP32), _norm(GEMMA_OFFSET)
"""`RMSNorm.forward` and `GemmaRMSNorm.forward`."""


def _gated(layer: Any, x: Tensor, z: Tensor | None = None, *more: Any, **others: Any) -> Any:
    """`RMSNormGated.forward`: x (..., N), z with the same rows or None; a new tensor of x's shape.

    In Qwen3.5's prefill on CUDA, from 0.5.23 on, z is (tokens, heads, N) in a wider projection beside an x of
    (tokens * heads, N): it is read where it lies.
    """
    ours = None if given(more, others) else norm_classes.rms_norm_gated(layer, x, z)
    return native(layer)(x, z, *more, **others) if ours is None else ours


def _mixer2(layer: Any, x: Tensor, gate: Tensor) -> Any:
    """`Mixer2RMSNormGated.forward`: x (..., N), gate like it; a new tensor."""
    ours = norm_classes.mixer2(layer, x, gate)
    return native(layer)(x, gate) if ours is None else ours


def _fused_gated(
    layer: Any,
    x: Tensor,
    g: Tensor,
    residual: Tensor | None = None,
    prenorm: bool = False,
    residual_in_fp32: bool = False,
) -> Any:
    """`FusedRMSNormGated.forward`: x (..., N), g like it. As in SGLang, a contiguous x is written and returned.

    Kimi-Linear's x is (1, tokens, heads, N), its g (tokens, heads, N).
    """
    beyond = residual is not None or prenorm or residual_in_fp32
    heads = calls.in_shape_of(g, x)
    if beyond or not calls.rows_fit(heads, layer.weight) or not calls.alike(heads, g):
        return native(layer)(x, g, residual, prenorm, residual_in_fp32)
    op, arguments = torch.ops.serving_ops.rms_norm_gated, (layer.weight, layer.eps, None, True, layer.activation, None)
    if not x.is_contiguous():
        return op.default(heads, g, *arguments)
    op.out(heads, g, *arguments, out=heads)
    return x


def _why_native_fused(layer: Any) -> str | None:
    return "it has no weight" if layer.weight is None else norm_classes.why_other_gate(layer)


def _fla(module: str) -> tuple[str, ...]:
    return tuple(f"sglang.{where}.attention.fla.{module}" for where in ("kernels.ops", "srt.layers"))


GATED_MODULES = _fla("layernorm_gated")
"""Qwen3.5, Jet-Nemotron and Bailing have their gated norm from there, by the name `RMSNorm`."""

_LAYERNORM = ("sglang.srt.layers.layernorm",)
_MIXER2 = ("sglang.srt.layers.attention.mamba.mixer2_rms_norm_gated",)

RMS_NORM = Adapter("RMSNorm", _LAYERNORM, NORMS, norm_classes.rms_norm_specs, rms_norm, why_native_rms_norm)

ADAPTERS = (
    RMS_NORM,
    Adapter("GemmaRMSNorm", _LAYERNORM, NORMS, norm_classes.gemma_specs, _gemma),
    Adapter(
        "RMSNormGated",
        GATED_MODULES,
        GATED,
        norm_classes.gated_specs,
        _gated,
        norm_classes.why_other_gate,
        sglangs="RMSNorm",
    ),
    Adapter(
        "FusedRMSNormGated",
        _fla("fused_norm_gate"),
        GATED,
        norm_classes.fused_gated_specs,
        _fused_gated,
        _why_native_fused,
    ),
    Adapter("Mixer2RMSNormGated", _MIXER2, GATED, norm_classes.mixer2_specs, _mixer2, norm_classes.why_not_mixer2),
)
