"""The norm layers of a loaded model: whether serving_ops or vLLM serves each, and why vLLM does."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from serving_ops import NormSpec, extension, settings
from serving_ops.integrations.common.norm_specs import why_reference
from serving_ops.integrations.vllm import features, installed, ir_layers, quantization
from serving_ops.integrations.vllm.adapter import HEADS_IN_ONE_KERNEL, LEFT_OUT, Activations, Adapter, calls

NO_ADAPTER = "no adapter yet"
BY_CHOICE = {NO_ADAPTER, HEADS_IN_ONE_KERNEL, LEFT_OUT}
"""Reasons that are not a fallback, like the reasons that `quantization` gives: vLLM's code is better there, or we have
no code for the norm."""


@dataclass(frozen=True)
class NormLayer:
    """One layer: the name of vLLM's class, the norms that the layer may call, and why vLLM keeps it, or None."""

    kind: str
    specs: tuple[NormSpec, ...]
    native_because: str | None

    def fell_back(self) -> bool:
        """Return whether the plugin was meant to serve this layer and could not."""
        reason = self.native_because
        return reason is not None and reason not in BY_CHOICE and not reason.startswith(quantization.CONSUMER)


def models_of(worker: Any) -> Iterator[torch.nn.Module]:
    """Yield the model that a worker serves, and its draft model, for which vLLM's runners have two names."""
    yield worker.get_model()
    for name in ("drafter", "speculator"):
        drafting = getattr(getattr(worker.model_runner, name, None), "model", None)
        if isinstance(drafting, torch.nn.Module):
            yield drafting


def norm_layers(
    models: Iterable[torch.nn.Module], vllm_config: Any, device: torch.device, without: Collection[Any] = ()
) -> list[NormLayer]:
    """Return every norm layer of the models that vLLM built from this configuration, except those in `without`."""
    model = vllm_config.model_config
    x = Activations(model.dtype, device, model.get_hidden_size(), model.get_head_size())
    found = (_norm_layer(layer, x) for model in models for layer in model.modules() if layer not in without)
    stays = quantization.why_norms_stay(vllm_config)
    return [_that_stays(layer, stays) for layer in found if layer is not None]


def _that_stays(layer: NormLayer, because: str | None) -> NormLayer:
    """Give a native layer this reason. A layer that the user's own IR priority gives to our providers stays on."""
    if because is None or layer.native_because is None:
        return layer
    return dataclasses.replace(layer, native_because=because)


def _norm_layer(layer: Any, x: Activations) -> NormLayer | None:
    kind = type(layer).__name__
    feature = next((name for name, adapter in features.ADAPTERS.items() if adapter.is_of(type(layer))), None)
    if feature is None:
        return NormLayer(kind, (), NO_ADAPTER) if "RMSNorm" in kind else None
    adapter = features.ADAPTERS[feature]
    if features.has_ir() and _asks_ir(layer, adapter):
        return NormLayer(adapter.name, *ir_layers.norms_and_why_native(layer, x))
    if _is_ours(layer):
        return _layer_of_ours(layer, adapter, x)
    return NormLayer(adapter.name, (), _why_not_ours(layer, feature))


def _is_ours(layer: Any) -> bool:
    return hasattr(type(layer), "stay_native")


def _asks_ir(layer: Any, adapter: Adapter) -> bool:
    """Return whether a layer runs vLLM's code, and that code calls vLLM's IR where vLLM has one."""
    if _is_ours(layer):
        return "forward_native" not in vars(type(layer)) and calls(layer, "forward_native")
    return adapter.ops == ir_layers.OPS


def _layer_of_ours(layer: Any, adapter: Adapter, x: Activations) -> NormLayer:
    reason = adapter.why_native(layer, x)
    specs = () if reason is not None else adapter.specs(layer, x)
    reason = reason or _why_user_prefers_another(adapter, specs)
    reason = reason or ("its prewarm failed" if type(layer).stay_native else why_reference(specs))
    if reason is not None:
        layer.stay_native = True  # vLLM's own code is faster than our reference
    return NormLayer(adapter.name, specs, reason)


def _why_user_prefers_another(adapter: Adapter, specs: Iterable[NormSpec]) -> str | None:
    """Return why an IR priority that the user gave leaves these norms to another provider, or None."""
    if not adapter.asks_ir or not features.has_ir() or ir_layers.why_providers_are_missing() is not None:
        return None
    return ir_layers.why_dispatched_elsewhere(specs)


def _why_not_ours(layer: Any, feature: str) -> str:
    """Return why vLLM built its own class although the feature replaces that class."""
    adapter = features.ADAPTERS[feature]
    if not settings.ops().issuperset(adapter.ops):
        return LEFT_OUT
    missing = extension.why_missing() if adapter.needs_cpp else None
    built = NO_ADAPTER if feature in features.STATE_SPACE_FEATURES else f"it was built as {type(layer).__name__}"
    return installed.failures.get(feature) or missing or built
