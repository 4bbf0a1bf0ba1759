"""Liger's norms, which return new tensors: its public autograd functions, without a graph recorded and with one."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

from serving_ops.bench_e2e.ops.cases import ADD, FUSED_ADD, RMS_NORM, Case
from serving_ops.bench_e2e.ops.contestants import Call, Contestant, Unsupported
from serving_ops.bench_e2e.ops.inputs import EPS, Inputs
from serving_ops.bench_e2e.ops.peers import offered, trained, version

BLOCK_ROWS = 32768  # Liger 0.8.5 takes rows in blocks from so many on, where N is at most BLOCK_SIZE
BLOCK_SIZE = 256


def _functions() -> tuple[Any, Any]:
    fused_add = importlib.import_module("liger_kernel.ops.fused_add_rms_norm").LigerFusedAddRMSNormFunction
    return fused_add.apply, importlib.import_module("liger_kernel.ops.rms_norm").LigerRMSNormFunction.apply


def contestants() -> list[Contestant]:
    fused_add, rms_norm = _functions()
    calls = {
        FUSED_ADD: lambda i: partial(fused_add, i.x, i.residual, i.weight, EPS),
        RMS_NORM: lambda i: partial(rms_norm, i.x, i.weight, EPS),
    }
    return [Contestant("Liger", version("liger-kernel"), offered(calls))]


def with_gradients() -> list[Contestant]:
    """Its default writes dx into dout; its row path is another choice only where the default takes blocks of rows."""
    fused_add, rms_norm = _functions()
    default = {
        RMS_NORM: lambda x, weight: rms_norm(x, weight, EPS),
        ADD: lambda x, residual, weight: fused_add(x, residual, weight, EPS),
    }
    of_rows = trained(
        {RMS_NORM: lambda x, weight: rms_norm(x, weight, EPS, 0.0, "llama", True, True)}, overwrites_dout=True
    )

    def by_rows(case: Case, inputs: Inputs) -> Call:
        if case.op != RMS_NORM or case.size > BLOCK_SIZE or case.rows < BLOCK_ROWS:
            raise Unsupported("the default is the row path")
        return of_rows(case, inputs)

    of = version("liger-kernel")
    return [Contestant("Liger", of, trained(default, overwrites_dout=True)), Contestant("Liger rows", of, by_rows)]
