"""`Adapter`: the description of one vLLM class that the plugin adapts."""

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
    """Return whether vLLM chose this method when it built the layer, by device and mode."""
    return getattr(getattr(layer, "_forward_method", None), "__name__", "") == method


@dataclass(frozen=True)
class Activations:
    """A model's activations: dtype, device, and the widths of hidden states and of a head."""

    dtype: torch.dtype
    device: torch.device
    hidden_size: int
    head_size: int

    def leaves_heads_to_inductor(self, layer: Any) -> bool:
        """Return whether the layer norms heads in compiled code on CUDA, where Inductor is faster."""
        compiled = self.device.type == "cuda" and calls(layer, "forward_native")
        return compiled and layer.weight.numel() == self.head_size != self.hidden_size

    def spec(self, op: str, size: int, weight: torch.Tensor | None, **options: Any) -> NormSpec:
        """Return a norm of rows of this size, scaled by this weight."""
        return NormSpec(op, size, self.dtype, None if weight is None else weight.dtype, self.device, **options)


@dataclass(frozen=True)
class Adapter:
    """One class of vLLM's.

    name: the class's name in vLLM and in the start-up line.
    defined_in: the modules that define it; vLLM has moved some classes.
    specs: takes a layer and its activations; returns the norms that the layer may call.
    forward: takes a layer and vLLM's arguments; returns None where the kernels do not take them, and vLLM's own method
        then runs.
    why_native: takes a layer and its activations; returns why vLLM keeps the layer, or None.
    forward_native: replaces `forward` in compiled code on CUDA and in all code on CPU; None: `forward` serves both.
    needs_cpp: whether vLLM keeps the class on CUDA without the C++ launcher, because it was only measured with it.
    asks_ir: whether vLLM's class calls vLLM's IR; a priority that the user gave to the IR then holds for ours too.
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
        """Return the class from the first of its modules that this vLLM has. Raises ImportError if it has none."""
        for module in self.defined_in:
            try:
                return getattr(importlib.import_module(module), self.name)
            except ModuleNotFoundError as error:
                missing = error
        raise missing

    def is_of(self, cls: type) -> bool:
        """Return whether `cls` is vLLM's class or a subclass of it."""
        return any(base.__name__ == self.name and base.__module__ in self.defined_in for base in cls.__mro__)
