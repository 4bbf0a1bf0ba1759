"""The norm layers of a loaded model: whether serving_ops or vLLM serves each, and why vLLM does."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from serving_ops import NormSpec, extension, settings
from serving_ops.integrations.common import norm_layers
from serving_ops.integrations.common.norm_classes import NORMS, Activations, rms_norm_specs, why_reference
from serving_ops.integrations.common.norm_layers import LEFT_OUT, NO_ADAPTER
from serving_ops.integrations.vllm import features, hidden_states, installed, quantization
from serving_ops.integrations.vllm.adapters import ADAPTERS, GEMMA_RMS_NORM, STATE_SPACE, Adapter, why_part
from serving_ops.integrations.vllm.hidden_states import HANDED_ON
from serving_ops.integrations.vllm.ir_providers import OURS, ROWS_PROVIDER
from serving_ops.ops.registry import sample

HEADS_IN_ONE_KERNEL = "of heads: Inductor computes q's and k's in one kernel"
BATCH_INVARIANT = "VLLM_BATCH_INVARIANT takes vLLM's own kernel"
BY_CHOICE = {NO_ADAPTER, HEADS_IN_ONE_KERNEL, LEFT_OUT, HANDED_ON}
"""Reasons that are not a fallback, like the reasons that `quantization` gives: vLLM's code is better there, or we have
no code for the norm."""


@dataclass(frozen=True)
class NormLayer(norm_layers.NormLayer):
    """One of vLLM's layers; its kind is the name of vLLM's class."""

    def fell_back(self) -> bool:
        """Return whether the plugin was meant to serve this layer and could not."""
        reason = self.native_because
        return reason is not None and reason not in BY_CHOICE and not reason.startswith(quantization.CONSUMER)


def models_of(worker: Any) -> Iterator[torch.nn.Module]:
    """Yield the model that a worker serves, and its draft model, for which vLLM's runners have two names."""
    yield worker.get_model()
    for name in ("drafter", "speculator"):
        drafting = getattr(getattr(worker.model_runner, name, None), "model", None)
        drafting = drafting.unwrap() if hasattr(drafting, "unwrap") else drafting  # since 0.33 graphs may be around it
        if isinstance(drafting, torch.nn.Module):
            yield drafting


def activations(vllm_config: Any, device: torch.device) -> Activations:
    """Return those of the model that a configuration is for."""
    model = vllm_config.model_config
    return Activations(model.dtype, model.get_hidden_size(), model.get_head_size(), device)


def survey(
    models: Sequence[torch.nn.Module], vllm_config: Any, device: torch.device, without: Collection[Any] = ()
) -> list[NormLayer]:
    """Return every norm layer of the models that vLLM built from this configuration, except those in `without`."""
    x = activations(vllm_config, device)
    found = (_norm_layer(layer, x) for model in models for layer in model.modules() if layer not in without)
    layers = [layer for layer in found if layer is not None]
    stay = hidden_states.why_norms_stay(models) or quantization.why_norms_stay(vllm_config)
    if stay is None:
        return layers
    # A layer that the user's own IR priority gives to our providers stays on.
    return [layer if layer.native_because is None else replace(layer, native_because=stay) for layer in layers]


def _norm_layer(layer: Any, x: Activations) -> NormLayer | None:
    kind = type(layer).__name__
    adapter = next((adapter for adapter in ADAPTERS.values() if adapter.is_of(type(layer))), None)
    if adapter is None:
        return NormLayer(kind, (), NO_ADAPTER) if "RMSNorm" in kind else None
    ours = hasattr(type(layer), "stay_native")
    if _asks_ir(layer, adapter, ours=ours):
        return _layer_of_the_ir(layer, adapter, x)
    return _layer_of_ours(layer, adapter, x) if ours else NormLayer(adapter.name, (), _why_not_ours(layer, adapter))


def _asks_ir(layer: Any, adapter: Adapter, *, ours: bool) -> bool:
    """Return whether a layer runs vLLM's code, and that code calls vLLM's IR."""
    if ours:
        return "forward_native" not in adapter.methods and _calls(layer, "forward_native")
    return adapter.ops == NORMS


def _calls(layer: Any, method: str) -> bool:
    """Return whether vLLM chose this method when it built the layer, by device and mode."""
    return getattr(getattr(layer, "_forward_method", None), "__name__", "") == method


def _layer_of_the_ir(layer: Any, adapter: Adapter, x: Activations) -> NormLayer:
    """Return what is on of a layer whose norms the IR dispatches. Gemma's gives it the weight plus 1, in fp32."""
    specs = rms_norm_specs(layer, x)
    if adapter is GEMMA_RMS_NORM:
        specs = tuple(replace(spec, weight_dtype=torch.float32) for spec in specs)
    chosen = tuple(spec for spec in specs if spec.op in settings.ops())
    of_heads = specs[0].size == x.head_size != x.hidden_size
    called = tuple(spec for spec in chosen if (spec.heads > 1) == of_heads)
    reason = _why_native_in_the_ir(layer, called)
    left_out = [op for op in adapter.ops if op not in settings.ops()]
    partly = reason is None and not of_heads and left_out
    return NormLayer(f"{adapter.name} without {left_out[0]}" if partly else adapter.name, chosen, reason)


def _why_native_in_the_ir(layer: Any, called: tuple[NormSpec, ...]) -> str | None:
    if not called:
        return LEFT_OUT
    reason = features.why_no_providers() or why_part(layer)
    if reason is None and features.is_batch_invariant() and type(layer).__name__ == "RMSNorm":
        reason = BATCH_INVARIANT if _calls(layer, "forward_cuda") else None  # vLLM's layer does not use its IR then
    return reason or why_reference(called) or _why_dispatched_elsewhere(called)


def _why_dispatched_elsewhere(specs: Iterable[NormSpec]) -> str | None:
    """To whom vLLM's IR gives the first of these norms that it does not give to us, or None."""
    from vllm import ir

    for spec in specs:
        ir_op = getattr(ir.ops, spec.op)
        order = ir_op.get_priority()
        if OURS.isdisjoint(order):
            return f"the IR priority of {spec.op} starts with {order[0] if order else 'nothing'}"
        call = sample(spec)
        provider = ir_op.dispatch(*(call[name] for name in call if name != "weight_offset")).provider
        if provider not in OURS:
            return HEADS_IN_ONE_KERNEL if ROWS_PROVIDER in order else f"vLLM's IR gives it to {provider}"
    return None


def _layer_of_ours(layer: Any, adapter: Adapter, x: Activations) -> NormLayer:
    reason = adapter.why_native(layer)
    specs = () if reason is not None else adapter.specs(layer, x)
    if reason is None and adapter.asks_ir and features.why_no_providers() is None:
        reason = _why_dispatched_elsewhere(specs)  # a priority that the user gave
    reason = reason or ("its prewarm failed" if type(layer).stay_native else why_reference(specs))
    if reason is not None:
        layer.stay_native = True  # vLLM's own code is faster than our reference
    return NormLayer(adapter.name, specs, reason)


def _why_not_ours(layer: Any, adapter: Adapter) -> str:
    """Return why vLLM built its own class although the plugin replaces that class."""
    if not settings.ops().issuperset(adapter.ops):
        return LEFT_OUT
    missing = extension.why_missing() if adapter.needs_cpp else None
    built = NO_ADAPTER if adapter.name in STATE_SPACE else f"it was built as {type(layer).__name__}"
    return installed.failures.get(adapter.name) or missing or built
