"""Quack's CuTe kernel: writing in place, where `out` is x and `residual_out` is residual, and with gradients."""

from __future__ import annotations

import importlib
from functools import partial

from serving_ops.bench_e2e.ops.cases import ADD, FUSED_ADD, RMS_NORM
from serving_ops.bench_e2e.ops.contestants import Contestant
from serving_ops.bench_e2e.ops.inputs import EPS
from serving_ops.bench_e2e.ops.peers import offered, trained, version


def contestants() -> list[Contestant]:
    # forward(x, weight, out, bias, rstd, mean, residual, residual_out, eps)
    forward = importlib.import_module("quack.rmsnorm")._rmsnorm_fwd
    calls = {
        FUSED_ADD: lambda i: partial(forward, i.x, i.weight, i.x, None, None, None, i.residual, i.residual, EPS),
        RMS_NORM: lambda i: partial(forward, i.x, i.weight, i.out, None, None, None, None, None, EPS),
    }
    return [Contestant("Quack", version("quack-kernels"), offered(calls))]


def with_gradients() -> list[Contestant]:
    rmsnorm = importlib.import_module("quack.rmsnorm").rmsnorm
    norms = {
        RMS_NORM: lambda x, weight: rmsnorm(x, weight, eps=EPS),
        ADD: lambda x, residual, weight: rmsnorm(x, weight, residual=residual, eps=EPS, prenorm=True),
    }
    return [Contestant("Quack", version("quack-kernels"), trained(norms))]
