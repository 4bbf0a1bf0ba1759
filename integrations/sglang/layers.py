"""The norm layers of a loaded model: which of our operators each may call, or why SGLang keeps it.

Some of SGLang's fused kernels read a layer's weight and never call the layer. We leave those alone, such as q and k of
Qwen3.5 on CUDA and norms behind an all-reduce, but for q and k of Qwen3: see `qk_norm_rope_layer`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from serving_ops import extension, settings
from serving_ops.integrations.common import guard, norm_layers
from serving_ops.integrations.common.norm_classes import NORMS, Activations, why_reference
from serving_ops.integrations.common.norm_layers import LEFT_OUT, NO_ADAPTER
from serving_ops.integrations.common.record import Installed
from serving_ops.integrations.sglang import qk_norm_rope_layer, quantizing_rms_norm, server_args
from serving_ops.integrations.sglang.adapters import ADAPTERS, KEPT, QUANTIZES, Adapter
from serving_ops.integrations.sglang.quantizing_rms_norm import Pair

FORCED = "SGLANG_FORCE_FUSED_OP_BACKEND has another"
TRAINERS_NUMBERS = "rl_on_policy_target asks for the trainer's numbers"
AMX = "SGLang has AMX kernels for this CPU"
PINNED = "its model pins it to SGLang's code"
BY_CHOICE = {LEFT_OUT, FORCED, TRAINERS_NUMBERS, AMX, PINNED, QUANTIZES}
"""Reasons that are not a fallback: SGLang's code is wanted or better there, or we have no code for the norm."""

UNLESS_FUSED = " of narrow rows (unless SGLang fuses them)"
"""Marks q, k and latent norms on CUDA: SGLang may fuse two of them into its own kernel and never call the layers."""


@dataclass(frozen=True)
class NormLayer(norm_layers.NormLayer):
    """One of SGLang's layers, and its adapter. An attention layer, which calls the norms of q and k, has none.

    connect: changes SGLang beside the layer's own method.
    quantized_apart: why a projection that quantizes the result does so in a kernel after the norm.
    """

    layer: torch.nn.Module
    adapter: Adapter | None = None
    of_heads: bool = False  # rows narrower than hidden states
    connect: Callable[[Installed], None] | None = None
    quantized_apart: str | None = None


def survey(runner: Any) -> list[NormLayer]:
    """Every norm layer in the model that a `ModelRunner` has loaded."""
    hidden_size, device = getattr(runner.model_config, "hidden_size", 0), _device(runner)
    x = Activations(runner.dtype, hidden_size, device=device)
    nothing_because = _why_none(runner)
    found = (_norm_layer(layer, x, nothing_because) for layer in runner.model.modules())
    layers = [layer for layer in found if layer is not None]
    with guard.unless_strict("SGLang", "quantize in its norms"):
        pairs = quantizing_rms_norm.pairs(runner, x)
        layers = [_quantizing(layer, x, pairs.get(layer.layer)) for layer in layers]
    if torch.device(runner.device).type == "cuda" and nothing_because is None:
        with guard.unless_strict("SGLang", "norm and rotate q and k in one kernel"):
            layers += _attentions(runner, x)
    return layers


def _device(runner: Any) -> torch.device | None:
    """Where the model runs. A weight of its own may wait on the CPU until it is called (`--cpu-offload-gb`)."""
    kind = torch.device(runner.device).type
    return next((parameter.device for parameter in runner.model.parameters() if parameter.device.type == kind), None)


def _attentions(runner: Any, x: Activations) -> list[NormLayer]:
    """Return the attention layers whose norms of q and k and rotary embedding are one kernel of ours, or might be."""
    args = server_args.resolved(runner)
    wanted = qk_norm_rope_layer.OP in settings.ops()
    why_none = server_args.why_traced(args) or qk_norm_rope_layer.why_not_there(args) if wanted else LEFT_OUT
    found = []
    for layer in runner.model.modules():
        if not qk_norm_rope_layer.is_known(layer):
            continue
        reason = why_none or qk_norm_rope_layer.why_native(layer)
        specs = () if reason is not None else qk_norm_rope_layer.specs(layer, x)
        reason = reason or why_reference(specs)
        connect = functools.partial(qk_norm_rope_layer.connect, layer, *specs[:1])
        kind = f"{type(layer).__name__}'s q and k"
        found.append(NormLayer(kind, () if reason else specs, reason, layer, connect=connect))
    return found


def _quantizing(found: NormLayer, x: Activations, pair: Pair | None) -> NormLayer:
    """Return the layer as one that quantizes for its projection, if it is ours and that takes quantized rows."""
    if pair is None or found.native_because is not None:
        return found
    if isinstance(pair.form, str):
        return dataclasses.replace(found, quantized_apart=pair.form)
    adapter = quantizing_rms_norm.adapter(pair.projection, pair.form.fmt)
    return dataclasses.replace(
        found, kind=adapter.name, adapter=adapter, specs=adapter.specs(found.layer, x), connect=pair.connect
    )


def _why_none(runner: Any) -> str | None:
    """Return why the plugin may serve no layer of this model, or None.

    CUDA needs the C++ library too: without it a call takes several times SGLang's host time.
    """
    from sglang.srt.utils import cpu_has_amx_support, is_hip

    device = torch.device(runner.device).type
    if getattr(server_args.resolved(runner), "rl_on_policy_target", None) is not None:
        return TRAINERS_NUMBERS
    if device not in ("cpu", "cuda") or is_hip():
        return f"no kernels for {'hip' if is_hip() else device}"
    return AMX if device == "cpu" and cpu_has_amx_support() else extension.why_missing()


def _norm_layer(layer: torch.nn.Module, x: Activations, nothing_because: str | None) -> NormLayer | None:
    adapter = next((adapter for adapter in ADAPTERS if adapter.serves(type(layer))), None)
    if adapter is None:
        kind = type(layer).__name__
        return NormLayer(kind, (), NO_ADAPTER, layer) if "RMSNorm" in kind else None
    reason = nothing_because or _why_not_wanted(layer, adapter) or adapter.why_native(layer)
    specs = () if reason is not None else adapter.specs(layer, x)
    of_heads = any(spec.size < x.hidden_size for spec in specs)
    kind = _kind(adapter, of_heads and specs[0].device.type == "cuda")
    return NormLayer(kind, specs, reason or why_reference(specs), layer, adapter, of_heads)


def _kind(adapter: Adapter, narrow_on_cuda: bool) -> str:
    """Return the start-up line's name for a layer."""
    return f"{adapter.name}{UNLESS_FUSED}" if narrow_on_cuda and adapter.ops == NORMS else adapter.name


def _why_not_wanted(layer: Any, adapter: Adapter) -> str | None:
    if not settings.ops().issuperset(adapter.ops):
        return LEFT_OUT
    if not hasattr(layer, "available_backends"):  # SGLang before 0.5.18, and the gated modules
        return None
    from sglang.kernels.fused_op import get_fused_op_backend

    if get_fused_op_backend() in layer.available_backends():  # SGLang calls this backend, not the layer's method
        return FORCED
    method = layer._forward_method
    pinned = method is not None and KEPT not in vars(layer) and method != layer._resolve_forward_method()
    return PINNED if pinned else None  # it was built to call another than SGLang would choose at its first call
