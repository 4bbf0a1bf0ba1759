"""Liger's norms, which return new tensors: its public autograd functions, without a graph recorded and with one."""

from __future__ import annotations

import importlib
from functools import partial
from typing import Any

from serving_ops.bench_e2e.ops.cases import ADD, FUSED_ADD, RMS_NORM, Case
from serving_ops.bench_e2e.ops.contestants import Call, Contestant, Norm, Unsupported, differentiated
from serving_ops.bench_e2e.ops.inputs import EPS, Inputs
from serving_ops.bench_e2e.ops.peers import installed, trained

BLOCK_ROWS = 32768  # Liger 0.8.5 takes rows in blocks from so many on, where N is at most BLOCK_SIZE
BLOCK_SIZE = 256


def contestants() -> list[Contestant]:
    return [Contestant("Liger", installed.version("liger-kernel"), partial(_bind, *_functions()))]


def _functions() -> tuple[Any, Any]:
    fused_add = importlib.import_module("liger_kernel.ops.fused_add_rms_norm").LigerFusedAddRMSNormFunction
    return fused_add, importlib.import_module("liger_kernel.ops.rms_norm").LigerRMSNormFunction


def _bind(fused_add: Any, rms_norm: Any, case: Case, inputs: Inputs) -> Call:
    if case.op == FUSED_ADD:
        return partial(fused_add.apply, inputs.x, inputs.residual, inputs.weight, EPS)
    if case.op == RMS_NORM:
        return partial(rms_norm.apply, inputs.x, inputs.weight, EPS)
    raise Unsupported(f"no {case.op}")


def with_gradients() -> list[Contestant]:
    """Its default writes dx into dout; its row path is another choice only where the default takes blocks of rows."""
    fused_add, rms_norm = _functions()
    version = installed.version("liger-kernel")
    default: dict[str, Norm] = {
        RMS_NORM: lambda x, weight: rms_norm.apply(x, weight, EPS),
        ADD: lambda x, residual, weight: fused_add.apply(x, residual, weight, EPS),
    }

    def by_rows(case: Case, inputs: Inputs) -> Call:
        if case.op != RMS_NORM or case.size > BLOCK_SIZE or case.rows < BLOCK_ROWS:
            raise Unsupported("the default is the row path")
        rows: Norm = lambda x, weight: rms_norm.apply(x, weight, EPS, 0.0, "llama", True, True)  # noqa: E731
        return differentiated(rows, case, inputs, overwrites_dout=True)

    return [
        Contestant("Liger", version, trained(default, overwrites_dout=True)),
        Contestant("Liger rows", version, by_rows),
    ]
