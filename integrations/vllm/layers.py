"""The norm layers that a loaded model really has: what each may ask of our operators, and why it stays native."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from serving_ops import NormSpec, extension, settings
from serving_ops.integrations.common.norm_specs import VIEW_SPACING, as_view, why_reference
from serving_ops.integrations.vllm import features, installed, quantization
from serving_ops.integrations.vllm.ir_providers import OURS, ROWS_PROVIDER
from serving_ops.ops.registry import sample

IR_OPS: tuple[str, ...] = ("rms_norm", "fused_add_rms_norm")
GATED_OP = "rms_norm_gated"

KEPT_OUT = {
    "Mixer2RMSNormGated": features.MIXER2_RMS_NORM_GATED,
    "FusedRMSNormGated": features.FUSED_RMS_NORM_GATED,
}
"""Classes of vLLM's that are ours where the feature is in place."""

NO_ADAPTER = "no adapter yet"
BATCH_INVARIANT = "VLLM_BATCH_INVARIANT takes vLLM's own kernel"
HEADS_IN_ONE_KERNEL = "of heads: Inductor computes q's and k's in one kernel"
LEFT_OUT = "left out by SERVING_OPS"
BY_CHOICE = {NO_ADAPTER, HEADS_IN_ONE_KERNEL, LEFT_OUT}
"""Reasons that are no fallback, with those of `quantization`: vLLM's own code is the better one there, or ours does not
exist."""


@dataclass(frozen=True)
class NormLayer:
    """One layer: vLLM's class name, the norms that it may ask for, and what keeps it on vLLM's own code."""

    kind: str
    specs: tuple[NormSpec, ...]
    native_because: str | None

    def fell_back(self) -> bool:
        """Whether it was to be ours, and is not."""
        reason = self.native_because
        return reason is not None and reason not in BY_CHOICE and not reason.startswith(quantization.CONSUMER)


def models_of(worker: Any) -> Iterator[torch.nn.Module]:
    """The model that a worker serves, and the one that drafts for it, whatever vLLM's runner calls it."""
    yield worker.get_model()
    for name in ("drafter", "speculator"):
        drafting = getattr(getattr(worker.model_runner, name, None), "model", None)
        if isinstance(drafting, torch.nn.Module):
            yield drafting


@dataclass(frozen=True)
class _Activations:
    """What the layers are called with: dtype, device, the width of hidden states and that of a head."""

    dtype: torch.dtype
    device: torch.device
    hidden_size: int
    head_size: int

    def leaves_heads_to_inductor(self, layer: Any) -> bool:
        """Whether a layer of ours norms heads within a compiled CUDA graph."""
        compiled = self.device.type == "cuda" and _calls(layer, "forward_native")
        return compiled and layer.weight.numel() == self.head_size != self.hidden_size

    def spec(self, op: str, weight: torch.Tensor, **options: Any) -> NormSpec:
        """A norm of rows as long as a weight."""
        return NormSpec(op, weight.numel(), self.dtype, weight.dtype, self.device, **options)


def _ir_layer(layer: Any, kind: str, weight_dtype: torch.dtype | None, x: _Activations) -> NormLayer:
    plain, fused = (
        NormSpec(op, layer.weight.numel(), x.dtype, weight_dtype, x.device, eps=layer.variance_epsilon) for op in IR_OPS
    )
    rows, view = _chosen(plain, fused), _chosen(as_view(plain))
    if plain.size == x.hidden_size:
        return NormLayer(kind, rows, _why_ir_native(layer, rows))
    called = view if plain.size == x.head_size else rows
    return NormLayer(kind, (*rows, *view), _why_ir_native(layer, called))


def _chosen(*specs: NormSpec) -> tuple[NormSpec, ...]:
    """Those of operators that the user did not leave out."""
    return tuple(spec for spec in specs if spec.op in settings.ops())


def _why_not_installed(*needed: str) -> str | None:
    reasons: list[str] = [installed.failures[feature] for feature in needed if feature in installed.failures]
    return reasons[0] if reasons else None


def _why_ir_native(layer: Any, called: tuple[NormSpec, ...]) -> str | None:
    if not called:
        return LEFT_OUT
    reason = _why_not_installed(features.IR_PROVIDERS, features.PRIORITY)
    if reason is not None:
        return reason
    if getattr(layer, "variance_size_override", None) is not None:
        return "its variance is over a part of the row"
    if _is_batch_invariant(layer):
        return BATCH_INVARIANT
    return why_reference(called) or next(filter(None, map(_why_dispatched_elsewhere, called)), None)


def _why_dispatched_elsewhere(spec: NormSpec) -> str | None:
    from vllm import ir

    ir_op = getattr(ir.ops, spec.op)
    order = ir_op.get_priority()
    if OURS.isdisjoint(order):
        return f"the IR priority of {spec.op} starts with {order[0] if order else 'nothing'}"
    call = sample(spec)
    provider = ir_op.dispatch(*(call[name] for name in call if name != "weight_offset")).provider
    if provider in OURS:
        return None
    return HEADS_IN_ONE_KERNEL if ROWS_PROVIDER in order else f"vLLM's IR gives it to {provider}"


def _calls(layer: Any, method: str) -> bool:
    """Whether vLLM chose this method for a layer, by device and mode, when it was built."""
    return getattr(getattr(layer, "_forward_method", None), "__name__", "") == method


def _is_batch_invariant(layer: Any) -> bool:
    """Whether vLLM's own layer passes its IR by."""
    return features.is_batch_invariant() and type(layer).__name__ == "RMSNorm" and _calls(layer, "forward_cuda")


def _vllms_own(layer: Any, kind: str, feature: str) -> NormLayer:
    """A layer of a class that the feature would have replaced."""
    if not features.CALLS[feature] <= settings.ops():
        return NormLayer(kind, (), LEFT_OUT)
    missing = extension.why_missing() if feature in features.NEEDS_CPP else None
    return NormLayer(kind, (), _why_not_installed(feature) or missing or f"it was built as {type(layer).__name__}")


def _replaced_layer(layer: Any, kind: str, specs: tuple[NormSpec, ...], unwanted: str | None = None) -> NormLayer:
    """A layer whose class is ours."""
    reason = unwanted or ("its prewarm failed" if type(layer).stay_native else why_reference(specs))
    if reason is not None:
        layer.stay_native = True  # vLLM's own code is faster than our reference
    return NormLayer(kind, specs, reason)


def _norms_of(layer: Any, x: _Activations, **options: Any) -> tuple[NormSpec, ...]:
    """What a layer of ours without a gate may ask for: hidden states with a residual or without, or heads."""
    specs = [x.spec(op, layer.weight, eps=layer.variance_epsilon, **options) for op in IR_OPS]
    return tuple(specs) if specs[0].size == x.hidden_size else (*specs, as_view(specs[0]))


def _rms_norm_layer(layer: Any, x: _Activations) -> NormLayer:
    if layer.native_is_ir and _calls(layer, "forward_native"):
        return _ir_layer(layer, "RMSNorm", _weight_dtype(layer), x)
    specs = _norms_of(layer, x)
    if not layer.has_weight:
        specs = tuple(dataclasses.replace(spec, weight_dtype=None) for spec in specs)
    reason = layer.why_native()
    if reason is None and x.leaves_heads_to_inductor(layer):
        return NormLayer("RMSNorm", specs, HEADS_IN_ONE_KERNEL)
    return _replaced_layer(layer, "RMSNorm", specs, reason)


def _weight_dtype(layer: Any) -> torch.dtype | None:
    """Of a plain RMSNorm, which may have none."""
    return layer.weight.dtype if layer.has_weight else None


def _gemma_layer(layer: Any, x: _Activations) -> NormLayer:
    from serving_ops.integrations.vllm.gemma_rms_norm import WEIGHT_OFFSET

    specs = _norms_of(layer, x, weight_offset=WEIGHT_OFFSET)
    return _replaced_layer(layer, "GemmaRMSNorm", specs, _why_user_prefers_another(specs))


def _why_user_prefers_another(specs: Iterable[NormSpec]) -> str | None:
    """An IR priority that the user gave holds for our classes too; without vLLM's IR there is none."""
    if not features.has_ir() or _why_not_installed(features.IR_PROVIDERS, features.PRIORITY) is not None:
        return None
    return next(filter(None, map(_why_dispatched_elsewhere, specs)), None)


def _gated_layer(layer: Any, x: _Activations) -> NormLayer:
    spec = x.spec(
        GATED_OP,
        layer.weight,
        eps=layer.eps,
        activation=layer.activation,
        norm_before_gate=layer.norm_before_gate,
        group_size=layer.group_size,
        has_bias=layer.bias is not None,
    )
    return _replaced_layer(layer, "RMSNormGated", (spec, as_view(spec)))


def _mixer2_layer(layer: Any, x: _Activations) -> NormLayer:
    kind, why_native = "Mixer2RMSNormGated", layer.why_native()
    if why_native is not None:
        return NormLayer(kind, (), why_native)
    spec = x.spec(
        GATED_OP,
        layer.weight,
        eps=layer.variance_epsilon,
        norm_before_gate=False,
        group_size=layer.group_size,
        gate_token_stride=VIEW_SPACING * layer.weight.numel(),  # the gate is the first columns of a projection
    )
    return _replaced_layer(layer, kind, (spec,))


def _fused_gated_layer(layer: Any, x: _Activations) -> NormLayer:
    weight_dtype = None if layer.weight is None else layer.weight.dtype
    options = {"eps": layer.eps, "activation": layer.activation}
    spec = NormSpec(GATED_OP, layer.hidden_size, x.dtype, weight_dtype, x.device, **options)
    return _replaced_layer(layer, "FusedRMSNormGated", (spec, as_view(spec)))


OF_OURS: dict[str, Callable[[Any, _Activations], NormLayer]] = {
    "ServingOpsRMSNorm": _rms_norm_layer,
    "ServingOpsRMSNormGated": _gated_layer,
    "ServingOpsGemmaRMSNorm": _gemma_layer,
    "ServingOpsMixer2RMSNormGated": _mixer2_layer,
    "ServingOpsFusedRMSNormGated": _fused_gated_layer,
}
"""Our out-of-tree classes, by name: their modules import vLLM's layers."""


def _why_kept_out(kind: str) -> str:
    feature = KEPT_OUT.get(kind, "")
    if not features.CALLS.get(feature, set()) <= settings.ops():
        return LEFT_OUT
    missing = extension.why_missing() if feature in features.NEEDS_CPP else None
    return installed.failures.get(feature) or missing or NO_ADAPTER


def _plain_layer(layer: Any, kind: str, feature: str, weight_dtype: torch.dtype | None, x: _Activations) -> NormLayer:
    return _ir_layer(layer, kind, weight_dtype, x) if features.has_ir() else _vllms_own(layer, kind, feature)


def _norm_layer(layer: torch.nn.Module, x: _Activations) -> NormLayer | None:
    from vllm.model_executor.layers.layernorm import GemmaRMSNorm, RMSNorm, RMSNormGated

    kind = type(layer).__name__
    if kind in OF_OURS:
        return OF_OURS[kind](layer, x)
    if isinstance(layer, RMSNorm):
        return _plain_layer(layer, "RMSNorm", features.RMS_NORM, _weight_dtype(layer), x)
    if isinstance(layer, GemmaRMSNorm):
        return _plain_layer(layer, "GemmaRMSNorm", features.GEMMA_RMS_NORM, torch.float32, x)
    if isinstance(layer, RMSNormGated):
        return _vllms_own(layer, "RMSNormGated", features.RMS_NORM_GATED)
    return NormLayer(kind, (), _why_kept_out(kind)) if "RMSNorm" in kind else None


def norm_layers(models: Iterable[torch.nn.Module], vllm_config: Any, device: torch.device) -> list[NormLayer]:
    """Every norm layer in the models that vLLM built by this configuration."""
    model = vllm_config.model_config
    x = _Activations(model.dtype, device, model.get_hidden_size(), model.get_head_size())
    found = (_norm_layer(layer, x) for model in models for layer in model.modules())
    stays = quantization.why_norms_stay(vllm_config)
    return [_that_stays(layer, stays) for layer in found if layer is not None]


def _that_stays(layer: NormLayer, because: str | None) -> NormLayer:
    """The layer, native because its consumer quantizes, unless the user's own IR priority has it on all the same."""
    if because is None or layer.native_because is None:
        return layer
    return dataclasses.replace(layer, native_because=because)
