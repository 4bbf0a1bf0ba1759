"""SGLang's CUDA kernels (sglang-kernel), without and with programmatic dependent launch."""

from __future__ import annotations

from functools import partial

import torch

from serving_ops.bench_e2e.ops.cases import FUSED_ADD, RMS_NORM, Case
from serving_ops.bench_e2e.ops.contestants import Call, Contestant, Unsupported
from serving_ops.bench_e2e.ops.inputs import EPS, Inputs
from serving_ops.bench_e2e.ops.peers import installed

LIBRARIES = ["sgl_kernel/sm90/common_ops.abi3.so"]


def contestants() -> list[Contestant]:
    if not hasattr(torch.ops.sgl_kernel, "fused_add_rmsnorm"):
        installed.load_library(LIBRARIES)
    version = installed.version("sglang-kernel", "sgl-kernel")
    return [
        Contestant("sgl", version, partial(_bind, enable_pdl=False)),
        Contestant("sgl PDL", version, partial(_bind, enable_pdl=True)),
    ]


def _bind(case: Case, inputs: Inputs, *, enable_pdl: bool) -> Call:
    ops = torch.ops.sgl_kernel
    if case.op == FUSED_ADD:
        op = ops.fused_add_rmsnorm.default
        return partial(op, inputs.x, inputs.residual, inputs.weight, EPS, enable_pdl)
    if case.op == RMS_NORM:
        return partial(ops.rmsnorm.default, inputs.out, inputs.x, inputs.weight, EPS, enable_pdl)
    raise Unsupported(f"no {case.op}")
