"""Other projects' norms with gradients, by their public autograd functions; what is not installed is left out."""

from __future__ import annotations

import importlib
from collections.abc import Callable

from serving_ops.bench_e2e.ops.cases import GATED, RMS_NORM
from serving_ops.bench_e2e.ops.contestants import Unsupported
from serving_ops.bench_e2e.ops.peers import installed
from serving_ops.bench_e2e.ops.results import first_line
from serving_ops.bench_e2e.training.cases import ADD, TrainingCase
from serving_ops.bench_e2e.training.contestants import EPS, Contestant, Norm

LIGER_BLOCK_ROWS = 32768  # Liger 0.8.5 takes rows in blocks from so many on, where N is at most LIGER_BLOCK_SIZE
LIGER_BLOCK_SIZE = 256


def load(device: str) -> tuple[list[Contestant], dict[str, str]]:
    """The contestants that could be loaded, and for each other project the reason why not."""
    found: list[Contestant] = []
    absent: dict[str, str] = {}
    for project in (quack, liger, fla) if device == "cuda" else ():
        try:
            found += project()
        except Exception as error:  # an installation broken in any way is one contestant less
            absent[project.__name__] = first_line(error)
    return found, absent


def _of(functions: dict[str, Norm]) -> Callable[[TrainingCase], Norm]:
    def norm(case: TrainingCase) -> Norm:
        if case.op not in functions:
            raise Unsupported(f"no {case.op}")
        return functions[case.op]

    return norm


def quack() -> list[Contestant]:
    rmsnorm = importlib.import_module("quack.rmsnorm").rmsnorm
    functions: dict[str, Norm] = {
        RMS_NORM: lambda x, weight: rmsnorm(x, weight, eps=EPS),
        ADD: lambda x, residual, weight: rmsnorm(x, weight, residual=residual, eps=EPS, prenorm=True),
    }
    return [Contestant("Quack", installed.version("quack-kernels"), _of(functions))]


def liger() -> list[Contestant]:
    """Its default writes dx into dout; its row path is another choice only where the default takes blocks of rows."""
    rms_norm = importlib.import_module("liger_kernel.ops.rms_norm").LigerRMSNormFunction.apply
    fused_add = importlib.import_module("liger_kernel.ops.fused_add_rms_norm").LigerFusedAddRMSNormFunction.apply
    version = installed.version("liger-kernel")
    default: dict[str, Norm] = {
        RMS_NORM: lambda x, weight: rms_norm(x, weight, EPS),
        ADD: lambda x, residual, weight: fused_add(x, residual, weight, EPS),
    }

    def by_rows(case: TrainingCase) -> Norm:
        if case.op != RMS_NORM or case.size > LIGER_BLOCK_SIZE or case.rows < LIGER_BLOCK_ROWS:
            raise Unsupported("the default is the row path")
        return lambda x, weight: rms_norm(x, weight, EPS, 0.0, "llama", True, True)

    return [
        Contestant("Liger", version, _of(default), overwrites_dout=True),
        Contestant("Liger rows", version, by_rows, overwrites_dout=True),
    ]


def fla() -> list[Contestant]:
    layernorm_gated = importlib.import_module("fla.modules.layernorm_gated").rmsnorm_fn
    fused_norm_gate = importlib.import_module("fla.modules.fused_norm_gate").rms_norm_gated
    version = installed.version("fla-core", "flash-linear-attention")
    guard: dict[str, Norm] = {GATED: lambda x, z, weight: layernorm_gated(x, weight, None, z=z, eps=EPS)}
    gate: dict[str, Norm] = {GATED: lambda x, z, weight: fused_norm_gate(x, z, weight, None, eps=EPS)}
    return [
        Contestant("FLA layernorm_gated", version, _of(guard)),
        Contestant("FLA fused_norm_gate", version, _of(gate)),
    ]
