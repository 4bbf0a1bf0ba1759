"""Switching one built layer over to our operators, and back.

In every version of SGLang a layer's `forward` calls the layer's attribute `_forward_method`, and a class may pin it. We
set this attribute. So a backend that a user forces still comes first, and a call does not search for a backend. The
gated modules of flash-linear-attention have no such attribute; for them we set `forward` on the layer.

While SGLang compiles a model, its layers call `forward_native`. Our layers keep our method, because the compiler knows
our operators. Only norms of heads (q and k) go to Inductor then: in vLLM its one kernel for both is faster than two of
ours (docs/measurements.md). SGLang gives up its own fused kernel for the same reason."""

from __future__ import annotations

from types import MethodType
from typing import Any

from serving_ops.integrations.sglang.adapters import KEPT
from serving_ops.integrations.sglang.layers import NormLayer

CONNECTED = "serving_ops_connected"
"""The attribute of a layer that keeps the record of what `NormLayer.connect` changed."""


def on(found: NormLayer) -> None:
    """Have our operators run for a layer. Does nothing if they already do."""
    layer, adapter = found.layer, found.adapter
    if found.connect is not None and CONNECTED not in vars(layer):
        vars(layer)[CONNECTED] = found.connect()
    if adapter is None or KEPT in vars(layer):
        return
    ours = MethodType(adapter.forward, layer)
    if hasattr(layer, "_forward_method"):
        layer.sglangs_forward = layer._forward_method or layer._resolve_forward_method()
        layer._forward_method = ours
        if not found.of_heads:
            layer.enter_torch_compile = MethodType(_enter_torch_compile, layer)
    else:
        layer.sglangs_forward = layer.forward
        layer.forward = ours


def off(model: Any) -> None:
    """Give every layer of a model back to SGLang."""
    for layer in model.modules():
        if CONNECTED in vars(layer):
            vars(layer).pop(CONNECTED).undo()
        if KEPT not in vars(layer):
            continue
        if hasattr(layer, "_forward_method"):
            layer._forward_method = layer.sglangs_forward
            vars(layer).pop("enter_torch_compile", None)
        else:
            del layer.forward
        del layer.sglangs_forward


def _enter_torch_compile(layer: Any, num_tokens: int) -> None:
    type(layer).enter_torch_compile(layer, num_tokens)
    layer._forward_method = layer._original_forward_method
