"""Quantizations of a preset's linear layers: in its config.json, or while an engine loads it.

Weights are made up, and so are their scales: only speed is measured.
"""

from __future__ import annotations

from typing import Any

TOKEN: dict[str, Any] = {"strategy": "token", "dynamic": True}
TENSOR: dict[str, Any] = {"strategy": "tensor", "dynamic": False}
CHANNEL: dict[str, Any] = {"strategy": "channel", "dynamic": False}
FP8: dict[str, Any] = {"type": "float", "num_bits": 8, "symmetric": True}
INT8: dict[str, Any] = {"type": "int", "num_bits": 8, "symmetric": True}


def _compressed_tensors(weights: dict[str, Any], activations: dict[str, Any], layout: str) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": layout,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


CHECKPOINTS: dict[str, dict[str, Any]] = {
    "fp8-token": _compressed_tensors({**FP8, **CHANNEL}, {**FP8, **TOKEN}, "float-quantized"),
    "fp8-static": _compressed_tensors({**FP8, **TENSOR}, {**FP8, **TENSOR}, "float-quantized"),
    "fp8-block": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]},
    "int8-token": _compressed_tensors({**INT8, **CHANNEL}, {**INT8, **TOKEN}, "int-quantized"),
}
"""Name -> `quantization_config` of a checkpoint, as Hugging Face's models carry it."""

WHILE_LOADING = {"fp8-online": "fp8"}
"""Name -> `quantization` of an engine, which quantizes a checkpoint that is not."""

QUANTIZATIONS = (*CHECKPOINTS, *WHILE_LOADING)


def of_checkpoint(name: str | None) -> dict[str, Any]:
    """What goes into config.json for one of QUANTIZATIONS, or None."""
    return {"quantization_config": CHECKPOINTS[name]} if name in CHECKPOINTS else {}


def of_engine(name: str | None) -> dict[str, Any]:
    """What an engine is told for one of QUANTIZATIONS, or None."""
    return {"quantization": WHILE_LOADING[name]} if name in WHILE_LOADING else {}
