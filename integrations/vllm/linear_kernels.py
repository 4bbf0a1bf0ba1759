"""The kernels of a loaded model's linear layers, which say what a layer's input becomes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

_NAMES = ("fp8_linear", "w8a8_block_fp8_linear", "kernel")
"""The attributes in which vLLM's quantization methods and schemes keep a layer's kernel."""


def quantized_linears(models: Iterable[torch.nn.Module]) -> Iterator[Any]:
    """Yield the linear layers whose weights are quantized."""
    from vllm.model_executor.layers.linear import LinearBase, UnquantizedLinearMethod

    for model in models:
        for layer in model.modules():
            if isinstance(layer, LinearBase) and not isinstance(layer.quant_method, UnquantizedLinearMethod):
                yield layer


def kernel_of(linear: Any) -> Any:
    """Return the kernel that runs a quantized linear layer, or None where vLLM keeps it in another way."""
    for holder in (linear.quant_method, getattr(linear, "scheme", None)):
        for name in _NAMES:
            if hasattr(holder, name):
                return getattr(holder, name)
    return None
