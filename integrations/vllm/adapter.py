"""What each adapted class of vLLM's says about itself."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from serving_ops import NormSpec

HEADS_IN_ONE_KERNEL = "of heads: Inductor computes q's and k's in one kernel"
LEFT_OUT = "left out by SERVING_OPS"


def calls(layer: Any, method: str) -> bool:
    """Whether vLLM chose this method for a layer, by device and mode, when it was built."""
    return getattr(getattr(layer, "_forward_method", None), "__name__", "") == method


@dataclass(frozen=True)
class Activations:
    """What a model's norms are called with: dtype, device, the width of hidden states and that of a head."""

    dtype: torch.dtype
    device: torch.device
    hidden_size: int
    head_size: int

    def leaves_heads_to_inductor(self, layer: Any) -> bool:
        """Whether a layer of ours norms heads within a compiled CUDA graph."""
        compiled = self.device.type == "cuda" and calls(layer, "forward_native")
        return compiled and layer.weight.numel() == self.head_size != self.hidden_size

    def spec(self, op: str, size: int, weight: torch.Tensor | None, **options: Any) -> NormSpec:
        """A norm of rows of that size, scaled by that weight."""
        return NormSpec(op, size, self.dtype, None if weight is None else weight.dtype, self.device, **options)


@dataclass(frozen=True)
class Adapter:
    """One class of vLLM's.

    name: what vLLM and the start-up line call it.
    defined_in: the modules that have defined it; vLLM moves some about.
    specs: of a layer and its activations, the norms that it may ask for.
    forward: takes a layer and what vLLM calls it with; None where the kernels do not take that, and vLLM's own method
        runs.
    why_native: of a layer and its activations, what keeps it on vLLM's own code, or None.
    forward_native: the same for compiled code on CUDA and everything on CPU, where that is another.
    needs_cpp: whether it was measured on CUDA with the C++ launcher alone: without it vLLM's own class stays.
    asks_ir: whether vLLM's own class asks its IR for these norms: a priority that the user gave there holds for ours.
    """

    name: str
    defined_in: tuple[str, ...]
    ops: tuple[str, ...]
    specs: Callable[[Any, Activations], tuple[NormSpec, ...]]
    forward: Callable[..., Any]
    why_native: Callable[[Any, Activations], str | None] = lambda layer, x: None
    forward_native: Callable[..., Any] | None = None
    needs_cpp: bool = True
    asks_ir: bool = False

    def vllms_class(self) -> Any:
        """The class, from the first of its modules that this vLLM has. Raises ImportError where it has none."""
        for module in self.defined_in:
            try:
                return getattr(importlib.import_module(module), self.name)
            except ModuleNotFoundError as error:
                missing = error
        raise missing

    def is_of(self, cls: type) -> bool:
        """Whether this is vLLM's class or a subclass of it."""
        return any(base.__name__ == self.name and base.__module__ in self.defined_in for base in cls.__mro__)
