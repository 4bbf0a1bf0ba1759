"""`Adapter`: the description of one SGLang class that the plugin adapts, and what the adapters share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from serving_ops import NormSpec
from serving_ops.integrations.common.rounding import WEIGHT_IN_FP32 as WEIGHT_IN_FP32

KEPT = "sglangs_forward"
"""The attribute that keeps SGLang's own method on a layer that we have switched over."""


@dataclass(frozen=True)
class Activations:
    """A model's activations: their dtype, and the width of hidden states."""

    dtype: torch.dtype
    hidden_size: int

    def spec(self, op: str, size: int, weight: torch.Tensor, **options: Any) -> NormSpec:
        """Return a norm of rows of this size, scaled by this weight, on its device."""
        return NormSpec(op, size, self.dtype, weight.dtype, weight.device, **options)


@dataclass(frozen=True)
class Adapter:
    """One class of SGLang's.

    kind: the class's name in the start-up line.
    defined_in: the modules that define it; SGLang has moved some classes.
    why_native: takes a layer; returns what it does that our operators cannot, or None.
    specs: takes a layer and its activations; returns the norms that the layer may call.
    forward: replaces SGLang's method once bound to a layer; passes what the kernels do not take to `native`.
    """

    kind: str
    defined_in: tuple[str, ...]
    name: str
    ops: tuple[str, ...]
    why_native: Callable[[Any], str | None]
    specs: Callable[[Any, Activations], tuple[NormSpec, ...]]
    forward: Callable[..., Any]

    def serves(self, cls: type) -> bool:
        """Return whether `cls` is the class, or a subclass that does not override its forward methods."""
        for base in cls.__mro__:
            if base.__name__ == self.name and base.__module__ in self.defined_in:
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
    own: Callable[..., Any] = layer.forward_native if compiled else layer.sglangs_forward
    return own


def why_traced(server_args: Any) -> str | None:
    """Return that SGLang compiles the model's code, if it does: then its methods and their results stay its own."""
    graphs = getattr(server_args, "cuda_graph_config", None)
    compiled = getattr(server_args, "enable_torch_compile", False)
    pieces = graphs is not None and graphs.prefill.backend == "tc_piecewise"
    return "torch.compile traces the model" if compiled or pieces else None
