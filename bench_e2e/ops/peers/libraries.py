"""The norms of SGLang's kernels, Quack, Liger and flash-linear-attention, without gradients and with them.

Liger's return new tensors, the others write in place, or into `out`. FLA takes rows of head_dim: a strided z is copied
to rows within the call, as the engines do.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from serving_ops.bench_e2e.ops.cases import ADD, FUSED_ADD, GATED, RMS_NORM, Case
from serving_ops.bench_e2e.ops.contestants import Call, Contestant, Unsupported
from serving_ops.bench_e2e.ops.inputs import EPS, Inputs
from serving_ops.bench_e2e.ops.peers import load_library, offered, trained, version

LIGER_BLOCK_ROWS = 32768  # Liger 0.8.5 takes rows in blocks from so many on, where N is at most LIGER_BLOCK_SIZE
LIGER_BLOCK_SIZE = 256


def sgl() -> list[Contestant]:
    """Without and with programmatic dependent launch."""
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


def quack() -> list[Contestant]:
    # forward(x, weight, out, bias, rstd, mean, residual, residual_out, eps)
    forward = importlib.import_module("quack.rmsnorm")._rmsnorm_fwd
    calls = {
        FUSED_ADD: lambda i: partial(forward, i.x, i.weight, i.x, None, None, None, i.residual, i.residual, EPS),
        RMS_NORM: lambda i: partial(forward, i.x, i.weight, i.out, None, None, None, None, None, EPS),
    }
    return [Contestant("Quack", version("quack-kernels"), offered(calls))]


def quack_trained() -> list[Contestant]:
    rmsnorm = importlib.import_module("quack.rmsnorm").rmsnorm
    norms = {
        RMS_NORM: lambda x, weight: rmsnorm(x, weight, eps=EPS),
        ADD: lambda x, residual, weight: rmsnorm(x, weight, residual=residual, eps=EPS, prenorm=True),
    }
    return [Contestant("Quack", version("quack-kernels"), trained(norms))]


def _liger() -> tuple[Any, Any]:
    fused_add = importlib.import_module("liger_kernel.ops.fused_add_rms_norm").LigerFusedAddRMSNormFunction
    return fused_add.apply, importlib.import_module("liger_kernel.ops.rms_norm").LigerRMSNormFunction.apply


def liger() -> list[Contestant]:
    fused_add, rms_norm = _liger()
    calls = {
        FUSED_ADD: lambda i: partial(fused_add, i.x, i.residual, i.weight, EPS),
        RMS_NORM: lambda i: partial(rms_norm, i.x, i.weight, EPS),
    }
    return [Contestant("Liger", version("liger-kernel"), offered(calls))]


def liger_trained() -> list[Contestant]:
    """Its default writes dx into dout; its row path is another choice only where the default takes blocks of rows."""
    fused_add, rms_norm = _liger()
    default = {
        RMS_NORM: lambda x, weight: rms_norm(x, weight, EPS),
        ADD: lambda x, residual, weight: fused_add(x, residual, weight, EPS),
    }
    row_path = {RMS_NORM: lambda x, weight: rms_norm(x, weight, EPS, 0.0, "llama", True, True)}

    def by_rows(case: Case, inputs: Inputs) -> Call:
        if case.op != RMS_NORM or case.size > LIGER_BLOCK_SIZE or case.rows < LIGER_BLOCK_ROWS:
            raise Unsupported("the default is the row path")
        return trained(row_path, overwrites_dout=True)(case, inputs)

    of = version("liger-kernel")
    return [Contestant("Liger", of, trained(default, overwrites_dout=True)), Contestant("Liger rows", of, by_rows)]


def fla() -> list[Contestant]:
    """layernorm_gated, which engines carry, and the newer fused_norm_gate."""
    layernorm_forward = importlib.import_module("fla.modules.layernorm_gated").layer_norm_fwd
    gate_forward = importlib.import_module("fla.modules.fused_norm_gate").layer_norm_gated_fwd

    def layernorm_gated(x: Tensor, z: Tensor, weight: Tensor, out: Tensor) -> None:
        layernorm_forward(x, weight, None, EPS, z=z.reshape(x.shape), out=out, is_rms_norm=True)

    def fused_norm_gate(x: Tensor, z: Tensor, weight: Tensor, out: Tensor) -> object:
        return gate_forward(x, z.reshape(x.shape), weight, None, "swish", EPS, is_rms_norm=True)[0]

    def on_rows(norm: Callable[..., object], inputs: Inputs) -> Call:
        assert inputs.out is not None
        rows = (-1, inputs.x.shape[-1])
        return partial(norm, inputs.x.view(rows), inputs.z, inputs.weight, inputs.out.view(rows))

    return _of_fla(
        {
            "layernorm_gated": offered({GATED: partial(on_rows, layernorm_gated)}),
            "fused_norm_gate": offered({GATED: partial(on_rows, fused_norm_gate)}),
        }
    )


def fla_trained() -> list[Contestant]:
    layernorm = importlib.import_module("fla.modules.layernorm_gated").rmsnorm_fn
    gate = importlib.import_module("fla.modules.fused_norm_gate").rms_norm_gated
    return _of_fla(
        {
            "layernorm_gated": trained({GATED: lambda x, z, weight: layernorm(x, weight, None, z=z, eps=EPS)}),
            "fused_norm_gate": trained({GATED: lambda x, z, weight: gate(x, z, weight, None, eps=EPS)}),
        }
    )


def _of_fla(bound: dict[str, Callable[[Case, Inputs], Call]]) -> list[Contestant]:
    of = version("fla-core", "flash-linear-attention")
    return [Contestant(f"FLA {name}", of, bind) for name, bind in bound.items()]
