"""Layers whose norms go through vLLM's IR: which norms a layer calls, and which provider serves them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch

from serving_ops import NormSpec, settings
from serving_ops.integrations.common.norm_specs import as_view, why_reference
from serving_ops.integrations.common.rounding import WEIGHT_IN_FP32
from serving_ops.integrations.vllm import features, installed
from serving_ops.integrations.vllm.adapter import HEADS_IN_ONE_KERNEL, LEFT_OUT, Activations, calls
from serving_ops.integrations.vllm.ir_providers import OURS, ROWS_PROVIDER
from serving_ops.integrations.vllm.rms_norm_layer import OPS, PART_OF_ROW
from serving_ops.ops.registry import sample

BATCH_INVARIANT = "VLLM_BATCH_INVARIANT takes vLLM's own kernel"


def norms_and_why_native(layer: Any, x: Activations) -> tuple[tuple[NormSpec, ...], str | None]:
    """Return the norms that the layer may call and SERVING_OPS allows, and why vLLM keeps the layer, or None."""
    size, options = layer.weight.numel(), {"eps": layer.variance_epsilon, "weight_offset": WEIGHT_IN_FP32}
    rows = tuple(NormSpec(op, size, x.dtype, _weight_dtype(layer), x.device, **options) for op in OPS)
    view = _chosen(as_view(rows[0]))
    rows = _chosen(*rows)
    if size == x.hidden_size:
        return rows, _why_native(layer, rows)
    return (*rows, *view), _why_native(layer, view if size == x.head_size else rows)


def _weight_dtype(layer: Any) -> torch.dtype | None:
    """Return the dtype of the weight that the IR gets. RMSNorm may have no weight; Gemma's adds 1 to it, in fp32."""
    if not hasattr(layer, "has_weight"):
        return torch.float32
    return layer.weight.dtype if layer.has_weight else None


def _chosen(*specs: NormSpec) -> tuple[NormSpec, ...]:
    return tuple(spec for spec in specs if spec.op in settings.ops())


def why_providers_are_missing() -> str | None:
    """Return why our providers are missing from vLLM's IR or from its order, or None."""
    return installed.failures.get(features.IR_PROVIDERS) or installed.failures.get(features.PRIORITY)


def _why_native(layer: Any, called: tuple[NormSpec, ...]) -> str | None:
    if not called:
        return LEFT_OUT
    if why_providers_are_missing() is not None:
        return why_providers_are_missing()
    if getattr(layer, "variance_size_override", None) is not None:
        return PART_OF_ROW
    if features.is_batch_invariant() and type(layer).__name__ == "RMSNorm" and calls(layer, "forward_cuda"):
        return BATCH_INVARIANT  # vLLM's layer does not use its IR then
    return why_reference(called) or why_dispatched_elsewhere(called)


def why_dispatched_elsewhere(specs: Iterable[NormSpec]) -> str | None:
    """To whom vLLM's IR gives the first of these norms that it does not give to us, or None."""
    return next(filter(None, map(_why_dispatched_elsewhere, specs)), None)


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
