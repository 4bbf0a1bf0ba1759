"""SGLang's CUDA kernels (sglang-kernel), without and with programmatic dependent launch."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

from serving_ops.bench_e2e.ops.cases import FUSED_ADD, RMS_NORM, Case
from serving_ops.bench_e2e.ops.contestants import Call, Contestant
from serving_ops.bench_e2e.ops.inputs import EPS, Inputs
from serving_ops.bench_e2e.ops.peers import load_library, offered, version


def contestants() -> list[Contestant]:
    ops = torch.ops.sgl_kernel
    if not hasattr(ops, "fused_add_rmsnorm"):
        load_library(["sgl_kernel/sm90/common_ops.abi3.so"])

    def bind(pdl: bool) -> Callable[[Case, Inputs], Call]:
        return offered(
            {
                FUSED_ADD: lambda i: partial(ops.fused_add_rmsnorm.default, i.x, i.residual, i.weight, EPS, pdl),
                RMS_NORM: lambda i: partial(ops.rmsnorm.default, i.out, i.x, i.weight, EPS, pdl),
            }
        )

    of = version("sglang-kernel", "sgl-kernel")
    return [Contestant("sgl", of, bind(False)), Contestant("sgl PDL", of, bind(True))]
