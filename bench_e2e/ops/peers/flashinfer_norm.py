"""FlashInfer's norms, without and with programmatic dependent launch.

Its norm for FP8 in blocks came with 0.7. It also writes the rows before they are quantized, and pads each column of
scales to a multiple of 4 rows. Its other quantizing norm takes a scale that is given, which no case has.
"""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

import torch

from serving_ops.bench_e2e.ops.cases import FUSED_ADD, RMS_NORM, Case
from serving_ops.bench_e2e.ops.contestants import Call, Contestant
from serving_ops.bench_e2e.ops.inputs import EPS, Inputs
from serving_ops.bench_e2e.ops.peers import offered, version

PADDED_ROWS = 4


def contestants() -> list[Contestant]:
    norm = importlib.import_module("flashinfer.norm")
    of = version("flashinfer-python")
    names = {"FlashInfer": False, "FlashInfer PDL": True}
    return [Contestant(name, of, partial(_bind, norm, pdl)) for name, pdl in names.items()]


def _bind(norm: Any, pdl: bool, case: Case, inputs: Inputs) -> Call:
    if case.form == "block":
        return _bind_blocks(norm, pdl, inputs)
    plain = {
        FUSED_ADD: lambda i: partial(norm.fused_add_rmsnorm, i.x, i.residual, i.weight, EPS, pdl),
        RMS_NORM: lambda i: partial(norm.rmsnorm, i.x, i.weight, EPS, i.out, pdl),
    }
    return offered(plain)(case, inputs)


def _bind_blocks(norm: Any, pdl: bool, inputs: Inputs) -> Call:
    assert inputs.scales is not None
    rows, groups = inputs.scales.shape
    columns = torch.empty(groups, -(-rows // PADDED_ROWS) * PADDED_ROWS, device=inputs.x.device)
    normed = torch.empty_like(inputs.x)
    results = inputs.out, columns.T[:rows], inputs.residual

    def run() -> object:
        norm.fused_add_rmsnorm_fp8_block_quant(
            inputs.out, columns, normed, inputs.x, inputs.residual, inputs.weight, EPS, pdl
        )
        return results

    return run
