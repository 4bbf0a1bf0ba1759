"""SGLang's layers as tests build them, and what stands for the runner of a model of them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

HIDDEN = 256


def rows(*shape: int, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def runner_of(*built: torch.nn.Module, **server_args: Any) -> Any:
    return SimpleNamespace(
        model=torch.nn.ModuleList(built),
        device="cpu",
        dtype=torch.bfloat16,
        model_config=SimpleNamespace(hidden_size=HIDDEN),
        server_args=SimpleNamespace(**server_args),
    )


def with_weight(layer: Any) -> Any:
    layer = layer.to(torch.bfloat16).requires_grad_(False)
    layer.weight.copy_(rows(layer.weight.numel(), seed=1))
    return layer


def rms_norm(size: int = HIDDEN, **options: Any) -> Any:
    from sglang.srt.layers.layernorm import RMSNorm

    return with_weight(RMSNorm(size, eps=1e-5, **options))
