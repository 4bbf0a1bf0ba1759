"""Switching one built layer over to our operators, and back.

In every version of SGLang a layer's `forward` calls the layer's attribute `_forward_method`, and a class may pin it. We
set this attribute. So a backend that a user forces still comes first, and a call does not search for a backend. The
gated modules of flash-linear-attention have no such attribute; for them we set `forward` on the layer.

While SGLang compiles a model, its layers call `forward_native`. Our layers keep our method, because the compiler knows
our operators. Only norms of heads (q and k) go to Inductor then: in vLLM its one kernel for both is faster than two of
ours (docs/measurements.md). SGLang gives up its own fused kernel for the same reason."""

from __future__ import annotations

from operator import attrgetter
from types import MethodType
from typing import Any

from serving_ops.integrations.common.record import Installed
from serving_ops.integrations.sglang.adapters import KEPT
from serving_ops.integrations.sglang.layers import NormLayer

CHANGES = "serving_ops_changes"
"""The attribute of a layer that keeps the record of what was changed for it."""


def on(found: NormLayer) -> None:
    """Have our operators run for a layer. Does nothing if they already do.

    Raises AttributeError where SGLang's layers are others than those that ours were written for.
    """
    layer, adapter = found.layer, found.adapter
    if CHANGES in vars(layer):
        return
    changes = vars(layer)[CHANGES] = Installed()
    if found.connect is not None:
        found.connect(changes)
    if adapter is None:
        return
    method = "_forward_method" if hasattr(layer, "_forward_method") else "forward"
    changes.set(layer, KEPT, getattr(layer, method) or layer._resolve_forward_method())
    changes.set(layer, method, MethodType(adapter.forward, layer))
    if method == "_forward_method" and not found.of_heads:
        attrgetter("_original_forward_method", "enter_torch_compile")(layer)  # raises now, not while SGLang compiles
        changes.set(layer, "enter_torch_compile", MethodType(_enter_torch_compile, layer))


def off(model: Any) -> None:
    """Give every layer of a model back to SGLang."""
    for layer in model.modules():
        if CHANGES in vars(layer):
            vars(layer).pop(CHANGES).undo()


def _enter_torch_compile(layer: Any, num_tokens: int) -> None:
    type(layer).enter_torch_compile(layer, num_tokens)
    layer._forward_method = layer._original_forward_method
