"""What each adapted class of SGLang's says about itself, and what the adapters share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from serving_ops import NormSpec

WEIGHT_IN_FP32 = torch.finfo(torch.float32).tiny
"""A `weight_offset` that changes no weight in use, but has `rms_norm` and `fused_add_rms_norm` apply a weight of x's
dtype in fp32 and round once, as SGLang does; without an offset they round before the weight, as vLLM does. A weight of
zero gives 1e-38 of the normed row: nothing in fp16, next to nothing in bf16."""

KEPT = "sglangs_forward"
"""The attribute of a layer that is ours, which keeps SGLang's own method."""


@dataclass(frozen=True)
class Activations:
    """What a model's norms are called with: their dtype, and the width of hidden states."""

    dtype: torch.dtype
    hidden_size: int

    def spec(self, op: str, layer: Any, **options: Any) -> NormSpec:
        """A norm of rows as long as a layer's weight."""
        weight = layer.weight
        return NormSpec(op, weight.numel(), self.dtype, weight.dtype, weight.device, **options)


@dataclass(frozen=True)
class Adapter:
    """One class of SGLang's.

    kind: what the start-up line calls it.
    defined_in: the modules that have defined it; SGLang moves them about.
    why_native: of a layer, what it does beyond our operators, or None.
    specs: of a layer and its activations, the norms that it may ask for.
    forward: bound to a layer, the method that runs instead of SGLang's own; hands what it does not take to `native`.
    """

    kind: str
    defined_in: tuple[str, ...]
    name: str
    ops: tuple[str, ...]
    why_native: Callable[[Any], str | None]
    specs: Callable[[Any, Activations], tuple[NormSpec, ...]]
    forward: Callable[..., Any]

    def serves(self, cls: type) -> bool:
        """Whether this is the class, or a subclass that norms as it does."""
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
