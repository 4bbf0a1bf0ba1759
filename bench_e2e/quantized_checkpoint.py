"""A checkpoint with its linear layers in 8 bits: one scale an output channel, and one a token at run time.

Weights are rounded to the nearest, as in checkpoints that compressed-tensors describes. Engines read such a folder
without being told of it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from serving_ops.bench_e2e.presets import CHECKPOINTS

if TYPE_CHECKING:
    from torch import Tensor

NAMES = ("int8-token", "fp8-token")
WEIGHTS = "model.safetensors"
LINEAR = "_proj.weight"  # how the names of decoder layers' linear weights end


def write(source: Path, name: str, target: Path) -> None:
    """Write the checkpoint in `source` into the folder `target`, quantized as NAMES say."""
    from safetensors.torch import load_file, save_file

    tensors = {}
    for key, tensor in load_file(source / WEIGHTS).items():
        if key.endswith(LINEAR):
            tensors[key], tensors[f"{key}_scale"] = _by_channel(tensor, name)
        else:
            tensors[key] = tensor
    for file in source.iterdir():
        if file.name != WEIGHTS:
            shutil.copy(file, target)
    save_file(tensors, target / WEIGHTS, metadata={"format": "pt"})
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "quantization_config": CHECKPOINTS[name]}, indent=2))


def _by_channel(weight: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """(out, in) -> the same in 8 bits, and (out, 1) fp32 scales."""
    import torch

    int8 = name == "int8-token"
    limit = 127.0 if int8 else torch.finfo(torch.float8_e4m3fn).max
    scale = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny) / limit
    scaled = (weight.float() / scale).clamp(-limit, limit)
    return (scaled.round().to(torch.int8) if int8 else scaled.to(torch.float8_e4m3fn)), scale
