"""The product of FP8 rows with weights in blocks, in vLLM's installs with FlashInfer and DeepGEMM on Hopper.

vLLM's operator takes bf16 rows and quantizes them. This one takes rows that a norm has quantized. It chooses by their
number as vLLM does, whose models lost accuracy with FlashInfer's product of many rows. Both products take scales that
are column-major and aligned for TMA.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from serving_ops import QuantFormat, schemas

FMT = QuantFormat(scale_layout="tma_aligned")
"""Of the rows."""

NAME = "vllm_block_product"
FEW_ROWS = 32
"""FlashInfer's product takes fewer."""


@functools.cache
def _of_vllm() -> tuple[Any, Any]:
    """vLLM's modules. An import in each call would take 0.5 us."""
    from vllm.utils import deep_gemm, flashinfer

    return deep_gemm, flashinfer


def _product(q: Tensor, scales: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    deep_gemm, flashinfer = _of_vllm()
    if q.shape[0] < FEW_ROWS:
        return flashinfer.flashinfer_fp8_blockscale_gemm(
            input=q, weight=weight, input_scale=scales, weight_scale=weight_scale, out_dtype=torch.bfloat16
        )
    out = _empty(q, scales, weight, weight_scale)
    deep_gemm.fp8_gemm_nt((q, scales), (weight, weight_scale), out)
    return out


def _empty(q: Tensor, scales: Tensor, weight: Tensor, weight_scale: Tensor) -> Tensor:
    return torch.empty((q.shape[0], weight.shape[0]), dtype=torch.bfloat16, device=q.device)


@functools.cache
def define() -> None:
    """Define the operator, once per process: it is opaque to a compiled graph, where the number of rows is unknown."""
    arguments = "Tensor q, Tensor scales, Tensor weight, Tensor weight_scale"
    schemas.define(f"{NAME}({arguments}) -> Tensor", _product, _empty)
