"""FlashInfer's norms, without and with programmatic dependent launch."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

from serving_ops.bench_e2e.ops.cases import FUSED_ADD, RMS_NORM, Case
from serving_ops.bench_e2e.ops.contestants import Call, Contestant
from serving_ops.bench_e2e.ops.inputs import EPS, Inputs
from serving_ops.bench_e2e.ops.peers import offered, version


def contestants() -> list[Contestant]:
    norm = importlib.import_module("flashinfer.norm")

    def bind(pdl: bool) -> Callable[[Case, Inputs], Call]:
        return offered(
            {
                FUSED_ADD: lambda i: partial(norm.fused_add_rmsnorm, i.x, i.residual, i.weight, EPS, pdl),
                RMS_NORM: lambda i: partial(norm.rmsnorm, i.x, i.weight, EPS, i.out, pdl),
            }
        )

    of = version("flashinfer-python")
    return [Contestant("FlashInfer", of, bind(False)), Contestant("FlashInfer PDL", of, bind(True))]
