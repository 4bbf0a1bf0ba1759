"""FlashInfer's norms, without and with programmatic dependent launch."""

from __future__ import annotations

import importlib
from functools import partial
from types import ModuleType

from serving_ops.bench_e2e.ops.cases import FUSED_ADD, RMS_NORM, Case
from serving_ops.bench_e2e.ops.contestants import Call, Contestant, Unsupported
from serving_ops.bench_e2e.ops.inputs import EPS, Inputs
from serving_ops.bench_e2e.ops.peers import installed


def contestants() -> list[Contestant]:
    norm = importlib.import_module("flashinfer.norm")
    version = installed.version("flashinfer-python")
    return [
        Contestant("FlashInfer", version, partial(_bind, norm, False)),
        Contestant("FlashInfer PDL", version, partial(_bind, norm, True)),
    ]


def _bind(norm: ModuleType, enable_pdl: bool, case: Case, inputs: Inputs) -> Call:
    if case.op == FUSED_ADD:
        return partial(norm.fused_add_rmsnorm, inputs.x, inputs.residual, inputs.weight, EPS, enable_pdl)
    if case.op == RMS_NORM:
        return partial(norm.rmsnorm, inputs.x, inputs.weight, EPS, inputs.out, enable_pdl)
    raise Unsupported(f"no {case.op}")
