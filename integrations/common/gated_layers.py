"""The gated layers that both engines have by one name: what is beyond our operator, their norms and their calls."""

from __future__ import annotations

from typing import Any, Protocol

from torch import Tensor

from serving_ops import NormSpec
from serving_ops.checks import ACTIVATIONS
from serving_ops.integrations.common.calls import gated
from serving_ops.integrations.common.norm_specs import VIEW_SPACING, as_view

OPS: tuple[str, ...] = ("rms_norm_gated",)

SILU = "swish"
"""What the layers without an `activation` of their own gate with."""


class Activations(Protocol):
    """As `Activations` of either engine."""

    def spec(self, op: str, size: int, weight: Tensor, **options: Any) -> NormSpec: ...


def why_other_gate(layer: Any, x: object = None) -> str | None:
    """Return by what the layer gates that our operator does not, or None."""
    activation = getattr(layer, "activation", SILU)
    return None if activation in ACTIVATIONS else f"it gates with {activation}"


def rms_norm_gated_specs(layer: Any, x: Activations) -> tuple[NormSpec, ...]:
    """Rows, and heads gated by a view."""
    options, has_bias = _rms_norm_gated(layer), layer.bias is not None
    spec = x.spec(*OPS, layer.weight.numel(), layer.weight, eps=layer.eps, has_bias=has_bias, **options)
    return spec, as_view(spec)


def rms_norm_gated(layer: Any, x: Tensor, z: Tensor | None) -> Tensor | None:
    """The call of an `RMSNormGated`."""
    return gated(x, z, layer.weight, layer.eps, bias=layer.bias, **_rms_norm_gated(layer))


def _rms_norm_gated(layer: Any) -> dict[str, Any]:
    return {
        "norm_before_gate": layer.norm_before_gate,
        "activation": getattr(layer, "activation", SILU),
        "group_size": layer.group_size,
    }


def fused_specs(layer: Any, size: int, x: Activations) -> tuple[NormSpec, ...]:
    """Of a `FusedRMSNormGated`: rows, and heads gated by a view."""
    spec = x.spec(*OPS, size, layer.weight, eps=layer.eps, activation=layer.activation)
    return spec, as_view(spec)


def why_not_mixer2(layer: Any, x: object = None) -> str | None:
    """Return what a `Mixer2RMSNormGated` does beyond a gated norm of this rank's rows, or None."""
    if not layer.use_rms_norm:
        return "it gates without a norm"
    if layer.n_groups % layer.tp_size != 0:
        return "its groups are spread over tensor-parallel ranks"
    return None


def mixer2_specs(layer: Any, x: Activations) -> tuple[NormSpec, ...]:
    """Rows whose gate is the first columns of a projection."""
    size = layer.weight.numel()
    options = _mixer2(layer) | {"gate_token_stride": VIEW_SPACING * size}
    return (x.spec(*OPS, size, layer.weight, eps=layer.variance_epsilon, **options),)


def mixer2(layer: Any, x: Tensor, gate: Tensor) -> Tensor | None:
    """The call of a `Mixer2RMSNormGated`."""
    return gated(x, gate, layer.weight, layer.variance_epsilon, **_mixer2(layer))


def _mixer2(layer: Any) -> dict[str, Any]:
    return {"norm_before_gate": False, "group_size": layer.group_size}
