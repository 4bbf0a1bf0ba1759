"""Which models keep vLLM's norms because their linear layers quantize the norms' results.

vLLM computes such a norm and the quantization in one kernel, from Inductor or from a fusion pass. Our norm would add a
kernel: on an H200 (vLLM 0.25.1, Qwen3-0.6B, FP8 per token) a decode step took 1.04 of vLLM's time, and a prompt of 8192
tokens 1.17. An unknown quantization counts as one that quantizes activations.

On CPU vLLM quantizes to INT8 in an operator of its own, or within the product, so a norm of ours adds no kernel. Eager
norms are ours there (`quantized_pairs.CONSUMERS` has a measurement). Compiled ones were not seen to gain.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

CONSUMER = "its consumer "
"""The beginning of each reason."""

FORMATS = {
    "deepseek_v4_fp8": "FP8",
    "fbgemm_fp8": "FP8",
    "fp8": "FP8",
    "fp8_per_block": "FP8",
    "fp8_per_channel": "FP8",
    "fp8_per_tensor": "FP8",
    "gpt_oss_mxfp4": "MXFP4",
    "modelopt": "FP8",
    "modelopt_fp4": "NVFP4",
    "modelopt_mxfp8": "MXFP8",
    "mxfp4": "MXFP4",
    "mxfp8": "MXFP8",
    "nvfp4_per_token": "NVFP4",
}
"""vLLM's name of a quantization -> what activations become."""


def _is_online_weight_only(config: Any) -> bool:
    """Return whether linear layers are not quantized, and experts have INT8 weights only."""
    args = config.args
    if args.linear is not None or getattr(args, "targets", None) is not None:
        return False
    return args.moe.activation is None and str(args.moe.weight.dtype) == "torch.int8"


def _has_no_quantized_inputs(config: Any) -> bool:
    return not _compressed_inputs(config)


def _always(config: Any) -> bool:
    return True


WEIGHT_ONLY: dict[str, Callable[[Any], bool]] = {
    "auto_awq": _always,
    "auto_gptq": _always,
    "awq": _always,
    "awq_marlin": _always,
    "bitsandbytes": lambda config: not config.load_in_8bit,
    "compressed-tensors": _has_no_quantized_inputs,
    "experts_int8": _always,
    "gguf": _always,
    "gptq": _always,
    "gptq_marlin": _always,
    "inc": lambda config: config.data_type == "int",
    "moe_wna16": _always,
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
    formats = _compressed_inputs(config) if name == "compressed-tensors" else [FORMATS.get(_asked(vllm_config, name))]
    known = [found for found in formats if found is not None]
    if known == ["INT8"] and current_platform.is_cpu() and is_eager(vllm_config):
        return None
    return f"{CONSUMER}quantizes to {' and '.join(known)}" if known else f"{CONSUMER}may quantize: {name}"


def is_eager(vllm_config: Any) -> bool:
    """Return whether a configuration whose defaults are set compiles nothing."""
    return getattr(vllm_config.compilation_config.mode, "name", None) == "NONE"


def _asked(vllm_config: Any, name: str) -> str:
    """The name that the user gave to an online quantization, which says more than vLLM's."""
    return str(vllm_config.model_config.quantization) if name == "online" else name


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
