"""The norms of SGLang's kernels, FlashInfer, Quack, Liger and flash-linear-attention, with gradients where they train.

Liger's return new tensors, the others write in place, or into `out`.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from typing import Any

import torch

from serving_ops.bench_e2e.ops.cases import ADD, FUSED_ADD, FUSED_ADD_QUANT, GATED, RMS_NORM
from serving_ops.bench_e2e.ops.contestants import Call, Contestant, peer
from serving_ops.bench_e2e.ops.inputs import EPS, Inputs
from serving_ops.bench_e2e.ops.peers import load_library, version

PADDED_ROWS = 4  # to a multiple of which FlashInfer pads each column of scales


def sgl() -> list[Contestant]:
    ops = torch.ops.sgl_kernel
    if not hasattr(ops, "fused_add_rmsnorm"):
        load_library(["sgl_kernel/sm90/common_ops.abi3.so"])

    def calls(pdl: bool) -> dict[Any, Callable[[Inputs], Call]]:
        return {
            FUSED_ADD: lambda i: partial(ops.fused_add_rmsnorm.default, i.x, i.residual, i.weight, EPS, pdl),
            RMS_NORM: lambda i: partial(ops.rmsnorm.default, i.out, i.x, i.weight, EPS, pdl),
        }

    return _with_pdl("sgl", version("sglang-kernel", "sgl-kernel"), calls)


def flashinfer() -> list[Contestant]:
    """Its norm for FP8 in blocks came with 0.7. Its other quantizing norm takes a scale that is given, as no case."""
    norm = import_module("flashinfer.norm")

    def calls(pdl: bool) -> dict[Any, Callable[[Inputs], Call]]:
        return {
            FUSED_ADD: lambda i: partial(norm.fused_add_rmsnorm, i.x, i.residual, i.weight, EPS, pdl),
            RMS_NORM: lambda i: partial(norm.rmsnorm, i.x, i.weight, EPS, i.out, pdl),
            (FUSED_ADD_QUANT, "block"): partial(_flashinfer_blocks, norm, pdl),
        }

    return _with_pdl("FlashInfer", version("flashinfer-python"), calls)


def _with_pdl(name: str, of: str, calls: Callable[[bool], dict[Any, Callable[[Inputs], Call]]]) -> list[Contestant]:
    """Without and with programmatic dependent launch."""
    return [peer(name, of, calls(False)), peer(f"{name} PDL", of, calls(True))]


def _flashinfer_blocks(norm: Any, pdl: bool, i: Inputs) -> Call:
    """It also writes the rows before they are quantized."""
    rows, groups = i.scales_out.shape
    columns = torch.empty(groups, -(-rows // PADDED_ROWS) * PADDED_ROWS, device=i.x.device)
    arguments = (i.out, columns, torch.empty_like(i.x), i.x, i.residual, i.weight, EPS, pdl)
    results = i.out, columns.T[:rows], i.residual

    def run() -> object:
        norm.fused_add_rmsnorm_fp8_block_quant(*arguments)
        return results

    return run


def quack() -> list[Contestant]:
    module = import_module("quack.rmsnorm")
    forward = module._rmsnorm_fwd  # x, weight, out, bias, rstd, mean, residual, residual_out, eps
    calls = {
        FUSED_ADD: lambda i: partial(forward, i.x, i.weight, i.x, None, None, None, i.residual, i.residual, EPS),
        RMS_NORM: lambda i: partial(forward, i.x, i.weight, i.out, None, None, None, None, None, EPS),
    }
    norms = {
        RMS_NORM: lambda x, weight, eps: module.rmsnorm(x, weight, eps=eps),
        ADD: lambda x, residual, weight, eps: module.rmsnorm(x, weight, residual=residual, eps=eps, prenorm=True),
    }
    return [peer("Quack", version("quack-kernels"), calls, norms)]


def liger() -> list[Contestant]:
    """Its default writes dx into dout. Where that takes blocks of rows, its row path is another choice."""
    fused_add = import_module("liger_kernel.ops.fused_add_rms_norm").LigerFusedAddRMSNormFunction.apply
    rms_norm = import_module("liger_kernel.ops.rms_norm").LigerRMSNormFunction.apply
    of, norms = version("liger-kernel"), {FUSED_ADD: fused_add, ADD: fused_add, RMS_NORM: rms_norm}
    calls = {op: lambda i, norm=norm: partial(norm, *i.operands, EPS) for op, norm in norms.items()}
    by_rows = {RMS_NORM: lambda x, weight, eps: rms_norm(x, weight, eps, 0.0, "llama", True, True)}
    default = peer("Liger", of, calls, norms, overwrites_dout=True)
    return [default, peer("Liger rows", of, norms=by_rows, overwrites_dout=True)]


def fla() -> list[Contestant]:
    """layernorm_gated, which engines carry, and the newer fused_norm_gate.

    Without gradients they take rows of head_dim: a strided z is copied to rows within the call, as the engines do.
    """
    layernorm, gate = (import_module(f"fla.modules.{name}") for name in ("layernorm_gated", "fused_norm_gate"))
    of = version("fla-core", "flash-linear-attention")

    def layernorm_gated(i: Inputs) -> Call:
        x, out = (tensor.view(-1, tensor.shape[-1]) for tensor in (i.x, i.out))
        z, forward = i.z, partial(layernorm.layer_norm_fwd, x, i.weight, None, EPS, out=out, is_rms_norm=True)

        def run() -> None:
            forward(z=z.reshape(x.shape))

        return run

    def fused_norm_gate(i: Inputs) -> Call:
        x, z, weight = i.x.view(-1, i.x.shape[-1]), i.z, i.weight
        forward = gate.layer_norm_gated_fwd
        return lambda: forward(x, z.reshape(x.shape), weight, None, "swish", EPS, is_rms_norm=True)[0]

    norms = {GATED: lambda x, z, weight, eps: layernorm.rmsnorm_fn(x, weight, None, z=z, eps=eps)}
    newer = {GATED: lambda x, z, weight, eps: gate.rms_norm_gated(x, z, weight, None, eps=eps)}
    return [
        peer("FLA layernorm_gated", of, {GATED: layernorm_gated}, norms),
        peer("FLA fused_norm_gate", of, {GATED: fused_norm_gate}, newer),
    ]
