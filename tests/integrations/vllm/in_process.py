"""What tests of the plugin inside this process share: the device, the sizes of a model, its layers."""

from __future__ import annotations

import torch

from serving_ops import NormSpec
from serving_ops.integrations.vllm import ir_providers, layers
from serving_ops.integrations.vllm.layers import NormLayer

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")

HIDDEN, HEAD = 256, 128
OURS_FIRST = [ir_providers.PROVIDER, "native"]
SPEC = NormSpec("rms_norm", 256, torch.bfloat16, torch.bfloat16, DEVICE)


def rows(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(DEVICE, dtype)


def survey(model: torch.nn.Module) -> list[NormLayer]:
    return layers.norm_layers([model], torch.bfloat16, DEVICE, HIDDEN, HEAD)
