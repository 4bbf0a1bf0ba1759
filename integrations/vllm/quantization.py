"""Which models keep vLLM's norms because their linear layers quantize the norms' results.

Compiled, vLLM computes such a norm and the quantization in one kernel, from Inductor or from a fusion pass. Our norm
would add a kernel: on an H200 (vLLM 0.25.1, Qwen3-0.6B, FP8 per token) a decode step took 1.04 of vLLM's time, and a
prompt of 8192 tokens 1.17. An unknown quantization counts as one that quantizes activations.

FP8 in blocks is different: compiled, vLLM quantizes in an operator, either before the product or inside its operator,
as with FlashInfer. Inductor cannot join a norm to it. vLLM's pass can, and does so before the norms are given to
providers, so the norms that are left over are plain.

In eager mode vLLM quantizes in an operator of its own, or within the product, so a norm of ours adds no kernel. Eager
norms are ours on CUDA, and before INT8 on CPU (`quantized_pairs.CONSUMERS` has measurements). Models that run
uncompiled in CUDA graphs were not measured. Compiled norms on CPU were not seen to gain.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from serving_ops.integrations.vllm.compilation import is_eager, is_in_pieces

CONSUMER = "its consumer "
"""The beginning of each reason."""

_WEIGHTS_ALONE = (
    *("auto_awq", "auto_gptq", "awq", "awq_marlin", "gptq", "gptq_marlin"),
    *("experts_int8", "gguf", "moe_wna16"),
)


def _is_online_weight_only(config: Any) -> bool:
    """Return whether linear layers are not quantized, and experts have INT8 weights only."""
    args = config.args
    if args.linear is not None or getattr(args, "targets", None) is not None:
        return False
    return args.moe.activation is None and str(args.moe.weight.dtype) == "torch.int8"


WEIGHT_ONLY: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(_WEIGHTS_ALONE, lambda config: True),
    "bitsandbytes": lambda config: not config.load_in_8bit,
    "compressed-tensors": lambda config: not _compressed_inputs(config),
    "inc": lambda config: config.data_type == "int",
    "online": _is_online_weight_only,
    "torchao": lambda config: type(config.torchao_config).__name__.endswith("WeightOnlyConfig"),
}
"""vLLM's name of a quantization -> whether a configuration of it leaves activations as they are."""


def why_norms_stay(vllm_config: Any) -> str | None:
    """What the norms' consumers do to their input, for the start-up line; None where they take it as it is."""
    from vllm.platforms import current_platform

    config = vllm_config.quant_config
    if config is None:
        return None
    name = config.get_name()
    if name in WEIGHT_ONLY and WEIGHT_ONLY[name](config):
        return _why_weight_only_quantizes(vllm_config, name)
    asked = str(vllm_config.model_config.quantization) if name == "online" else name  # the user's name says more
    known = _compressed_inputs(config) if name == "compressed-tensors" else _named(asked)
    eager, on_cuda = _launches_each_kernel(vllm_config), current_platform.is_cuda()
    if known == ["INT8"] and eager:
        return None
    if known == ["FP8"] and on_cuda and (eager or _quantizes_in_operators(vllm_config.compilation_config)):
        return None
    return f"{CONSUMER}quantizes to {' and '.join(known)}" if known else f"{CONSUMER}may quantize: {name}"


def _launches_each_kernel(vllm_config: Any) -> bool:
    """Return whether vLLM neither compiles nor captures CUDA graphs.

    Some models run uncompiled in CUDA graphs by vLLM's default. How it captures is decided later than some of our
    questions, but `enforce_eager` says from the start that it does not.
    """
    from vllm.platforms import current_platform

    no_graphs = current_platform.is_cpu() or vllm_config.model_config.enforce_eager
    return is_eager(vllm_config.compilation_config) and bool(no_graphs)


def _quantizes_in_operators(compilation: Any) -> bool:
    """Return whether graphs quantize to FP8 in operators, and norms are calls of vLLM's IR until its passes ran.

    vLLM chooses so for weights in blocks.
    """
    by_vllm = is_in_pieces(compilation) and compilation.backend == "inductor"
    return bool(by_vllm and compilation.ir_enable_torch_wrap and compilation.is_custom_op_enabled("quant_fp8"))


def _named(name: str) -> list[str]:
    """What a quantization of this name makes of activations."""
    found = re.search("(mx|nv)?fp[48]", {"modelopt": "fp8", "modelopt_fp4": "nvfp4"}.get(name, name))
    return [found[0].upper()] if found else []


def _why_weight_only_quantizes(vllm_config: Any, name: str) -> str | None:
    """Weight-only kernels can be told to quantize their input, and other layers to be quantized while loading."""
    from vllm import envs

    of_marlin = getattr(envs, "VLLM_MARLIN_INPUT_DTYPE", None)
    if of_marlin is not None:
        return f"{CONSUMER}quantizes to {of_marlin.upper()}"
    if name != "online" and getattr(vllm_config.model_config, "quantization_config", None) is not None:
        return f"{CONSUMER}may quantize: {name} with a quantization_config"
    return None


def _compressed_inputs(config: Any) -> list[str]:
    """What the schemes of a compressed-tensors checkpoint make of activations."""
    schemes = (scheme for scheme in config.target_scheme_map.values() if scheme is not None)
    inputs = (scheme.get("input_activations") for scheme in schemes)
    return sorted({_format(given) for given in inputs if given is not None})


def _format(given: Any) -> str:
    kind = getattr(given.type, "value", given.type)
    return f"{'FP' if kind == 'float' else 'INT'}{given.num_bits}"
