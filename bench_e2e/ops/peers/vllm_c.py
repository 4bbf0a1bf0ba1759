"""vLLM's compiled norms: its CPU and its CUDA build register them under the same names."""

from __future__ import annotations

from functools import partial

import torch

from serving_ops.bench_e2e.ops.cases import FUSED_ADD, RMS_NORM, Case
from serving_ops.bench_e2e.ops.contestants import Call, Unsupported
from serving_ops.bench_e2e.ops.inputs import EPS, Inputs

NAME = "vLLM C"


def bind(case: Case, inputs: Inputs) -> Call:
    if case.op == FUSED_ADD:
        op = torch.ops._C.fused_add_rms_norm.default
        return partial(op, inputs.x, inputs.residual, inputs.weight, EPS)
    if case.op == RMS_NORM:
        return partial(torch.ops._C.rms_norm.default, inputs.out, inputs.x, inputs.weight, EPS)
    raise Unsupported("no gated norm in C++")
