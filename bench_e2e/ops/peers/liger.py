"""Liger's norms, which return new tensors: its public autograd functions, with no graph recorded."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

from serving_ops.bench_e2e.ops.cases import FUSED_ADD, RMS_NORM, Case
from serving_ops.bench_e2e.ops.contestants import Call, Contestant, Unsupported
from serving_ops.bench_e2e.ops.inputs import EPS, Inputs
from serving_ops.bench_e2e.ops.peers import installed


def contestants() -> list[Contestant]:
    fused_add = importlib.import_module("liger_kernel.ops.fused_add_rms_norm").LigerFusedAddRMSNormFunction
    rms_norm = importlib.import_module("liger_kernel.ops.rms_norm").LigerRMSNormFunction
    return [Contestant("Liger", installed.version("liger-kernel"), partial(_bind, fused_add, rms_norm))]


def _bind(fused_add: Any, rms_norm: Any, case: Case, inputs: Inputs) -> Call:
    if case.op == FUSED_ADD:
        return partial(fused_add.apply, inputs.x, inputs.residual, inputs.weight, EPS)
    if case.op == RMS_NORM:
        return partial(rms_norm.apply, inputs.x, inputs.weight, EPS)
    raise Unsupported(f"no {case.op}")
