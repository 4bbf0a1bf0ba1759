"""Quack's CuTe kernel: writing in place, where `out` is x and `residual_out` is residual, and with gradients."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial

from serving_ops.bench_e2e.ops.cases import ADD, FUSED_ADD, RMS_NORM, Case
from serving_ops.bench_e2e.ops.contestants import Call, Contestant, Norm, Unsupported
from serving_ops.bench_e2e.ops.inputs import EPS, Inputs
from serving_ops.bench_e2e.ops.peers import installed, trained


def contestants() -> list[Contestant]:
    norm = importlib.import_module("quack.rmsnorm")
    return [Contestant("Quack", installed.version("quack-kernels"), partial(_bind, norm._rmsnorm_fwd))]


def _bind(forward: Callable[..., object], case: Case, inputs: Inputs) -> Call:
    # forward(x, weight, out, bias, rstd, mean, residual, residual_out, eps)
    x, residual, weight = inputs.x, inputs.residual, inputs.weight
    if case.op == FUSED_ADD:
        return partial(forward, x, weight, x, None, None, None, residual, residual, EPS)
    if case.op == RMS_NORM:
        return partial(forward, x, weight, inputs.out, None, None, None, None, None, EPS)
    raise Unsupported(f"no {case.op}")


def with_gradients() -> list[Contestant]:
    rmsnorm = importlib.import_module("quack.rmsnorm").rmsnorm
    functions: dict[str, Norm] = {
        RMS_NORM: lambda x, weight: rmsnorm(x, weight, eps=EPS),
        ADD: lambda x, residual, weight: rmsnorm(x, weight, residual=residual, eps=EPS, prenorm=True),
    }
    return [Contestant("Quack", installed.version("quack-kernels"), trained(functions))]
