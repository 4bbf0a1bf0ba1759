"""What vLLM makes of many configurations on a GPU that is pretended, with the plugin off and then on.

Run by path, in a process that imports the vLLM to look at: prints JSON, one entry of CASES each. vLLM is imported as on
CPU; the platform turns into a Hopper's once that is done, so none of CUDA's libraries is asked for.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import sys
import tempfile
import types
from pathlib import Path
from typing import Any

MODEL: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "num_hidden_layers": 2,
    "vocab_size": 1024,
    "max_position_embeddings": 2048,
    "dtype": "bfloat16",
}


def _compressed(weights: dict[str, Any], inputs: dict[str, Any] | None, form: str) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "ignore": ["lm_head"],
        "config_groups": {"group_0": group},
    }


def _scheme(kind: str, bits: int, strategy: str, **more: Any) -> dict[str, Any]:
    return {"type": kind, "num_bits": bits, "strategy": strategy, "symmetric": True, "dynamic": False, **more}


FP8, INT8 = ("float", 8), ("int", 8)
TOKEN: dict[str, Any] = {"dynamic": True}
GROUP: dict[str, Any] = {"group_size": 128}
NVFP4: dict[str, Any] = {"group_size": 16}
FP8_BLOCK = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 128, "zero_point": True, "version": "gemm"}
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": False, "sym": True}
QUARK = {"dtype": "fp8_e4m3", "is_dynamic": False, "qscheme": "per_tensor", "symmetric": True}
MODELOPT = {"quant_method": "modelopt", "kv_cache_quant_algo": None, "exclude_modules": []}
AUTO_ROUND = {"quant_method": "auto-round", "bits": 4, "group_size": 128, "sym": True, "data_type": "int"}

CHECKPOINTS: dict[str, dict[str, Any]] = {
    "fp8 static": {"quant_method": "fp8", "activation_scheme": "static"},
    "fp8 dynamic": {"quant_method": "fp8", "activation_scheme": "dynamic"},
    "fp8 block": FP8_BLOCK,
    "fbgemm_fp8": {"quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0, "modules_to_not_convert": []},
    "compressed fp8 static": _compressed(_scheme(*FP8, "tensor"), _scheme(*FP8, "tensor"), "float-quantized"),
    "compressed fp8 token": _compressed(_scheme(*FP8, "channel"), _scheme(*FP8, "token", **TOKEN), "float-quantized"),
    "compressed fp8 block": _compressed(
        _scheme(*FP8, "block", block_structure=[128, 128]),
        _scheme(*FP8, "group", **TOKEN, **GROUP),
        "float-quantized",
    ),
    "compressed fp8 weights": _compressed(_scheme(*FP8, "channel"), None, "float-quantized"),
    "compressed int8 token": _compressed(_scheme(*INT8, "channel"), _scheme(*INT8, "token", **TOKEN), "int-quantized"),
    "compressed int8 static": _compressed(_scheme(*INT8, "tensor"), _scheme(*INT8, "tensor"), "int-quantized"),
    "compressed int4 fp8": _compressed(
        _scheme("int", 4, "group", **GROUP), _scheme(*FP8, "token", **TOKEN), "pack-quantized"
    ),
    "compressed int4 weights": _compressed(_scheme("int", 4, "group", **GROUP), None, "pack-quantized"),
    "compressed nvfp4": _compressed(
        _scheme("float", 4, "tensor_group", **NVFP4),
        _scheme("float", 4, "tensor_group", **NVFP4) | {"dynamic": "local"},
        "nvfp4-pack-quantized",
    ),
    "modelopt": {**MODELOPT, "quant_algo": "FP8"},
    "modelopt fp8 block": {**MODELOPT, "quant_algo": "FP8_PB_WO"},
    "modelopt_fp4": {**MODELOPT, "quant_algo": "NVFP4", "group_size": 16},
    "modelopt_mxfp8": {**MODELOPT, "quant_algo": "MXFP8"},
    "modelopt_mixed": {
        **MODELOPT,
        "quant_algo": "MIXED_PRECISION",
        "quantized_layers": {"model.layers.0.mlp.down_proj": {"quant_algo": "FP8"}},
    },
    "mxfp4": {"quant_method": "mxfp4"},
    "mxfp8": {"quant_method": "mxfp8"},
    "awq": AWQ,
    "gptq": GPTQ,
    "bitsandbytes": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "bitsandbytes int8": {"quant_method": "bitsandbytes", "load_in_8bit": True, "load_in_4bit": False},
    "inc": {**AUTO_ROUND, "packing_format": "auto_round:auto_gptq"},
    "quark": {
        "quant_method": "quark",
        "global_quant_config": {"weight": QUARK, "input_tensors": QUARK, "output_tensors": None},
        "layer_quant_config": {},
        "layer_type_quant_config": {},
        "export": {"kv_cache_group": [], "pack_method": "reorder"},
        "exclude": [],
    },
    "gpt_oss_mxfp4": {"quant_method": "gpt_oss_mxfp4"},
    "deepseek_v4_fp8": {
        "quant_method": "deepseek_v4_fp8",
        "activation_scheme": "dynamic",
        "weight_block_size": [128] * 2,
    },
}
"""Name -> `quantization_config` of a checkpoint."""

ON_THE_COMMAND_LINE = (
    "fp8",
    "fp8_per_tensor",
    "fp8_per_block",
    "fp8_per_channel",
    "mxfp8",
    "nvfp4_per_token",
    "int8_per_channel_weight_only",
    "experts_int8",
)
"""`--quantization` of a checkpoint that is not quantized."""

CASES: dict[str, tuple[dict[str, Any] | None, dict[str, Any]]] = {
    "unquantized": (None, {}),
    "unquantized, level 0": (None, {"optimization_level": 0}),
    "unquantized, pass on": (None, {"compilation_config": {"pass_config": {"fuse_norm_quant": True}}}),
    "unquantized, pass off": (None, {"compilation_config": {"pass_config": {"fuse_norm_quant": False}}}),
    "unquantized, custom norm": (None, {"compilation_config": {"custom_ops": ["+rms_norm"]}}),
    **{name: (config, {}) for name, config in CHECKPOINTS.items()},
    **{
        f"compressed fp8 token, pass {'on' if on else 'off'}": (
            CHECKPOINTS["compressed fp8 token"],
            {"compilation_config": {"pass_config": {"fuse_norm_quant": on}}},
        )
        for on in (True, False)
    },
    "fp8 block, quantized by Inductor": (FP8_BLOCK, {"compilation_config": {"custom_ops": ["-quant_fp8"]}}),
    "fp8 block, level 0": (FP8_BLOCK, {"optimization_level": 0}),
    "compressed fp8 token, level 0": (CHECKPOINTS["compressed fp8 token"], {"optimization_level": 0}),
    **{f"online {name}": (None, {"quantization": name}) for name in ON_THE_COMMAND_LINE},
    "moe_wna16": (GPTQ, {"quantization": "moe_wna16"}),
    "humming": (GPTQ, {"quantization": "humming"}),
}
"""Name -> the checkpoint's `quantization_config`, and more for the engine."""


MODES = {"compiled": False, "eager": True}
"""Name -> `enforce_eager`."""


def _resolve(folder: Path, case: str, *, eager: bool, **model: Any) -> Any:
    from vllm.engine.arg_utils import EngineArgs

    quantization, arguments = CASES[case]
    config = {**MODEL, **model} if quantization is None else {**MODEL, **model, "quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    shared = {"model": str(folder), "skip_tokenizer_init": True, "max_model_len": 1024, "enforce_eager": eager}
    return EngineArgs(**shared, allow_deprecated_quantization=True, **arguments).create_engine_config()


def _facts(config: Any, classes: list[str]) -> dict[str, Any]:
    compilation, priority = config.compilation_config, config.kernel_config.ir_op_priority
    return {
        "pass_config": {
            name: repr(value) for name, value in vars(compilation.pass_config).items() if not name.startswith("_")
        },
        "custom_ops": compilation.custom_ops,
        "ir_op_priority": {name: list(value) for name, value in vars(priority).items() if isinstance(value, list)},
        "classes": classes,
    }


def _look(folder: Path, case: str, *, eager: bool, on: bool) -> dict[str, Any]:
    from vllm.model_executor.custom_op import op_registry_oot

    from serving_ops.integrations.vllm import features, quantization

    try:
        config = _resolve(folder, case, eager=eager)
    except Exception as error:
        return {"refused": f"{type(error).__name__}: {error}"}
    if on:
        features.install_for(config, strict=True)
    facts = _facts(config, sorted(op_registry_oot))
    return {**facts, "class": type(config.quant_config).__name__, "why": quantization.why_norms_stay(config)}


def _pretend_a_hopper() -> None:
    from vllm.platforms import current_platform

    sys.modules["vllm._C_stable_libtorch"] = types.ModuleType("vllm._C_stable_libtorch")
    from vllm import _custom_ops

    for weights in ("fp8", "block_fp8"):
        setattr(_custom_ops, f"cutlass_scaled_mm_supports_{weights}", lambda capability: True)
    from vllm.model_executor.kernels.linear.scaled_mm import cutlass

    cutlass.CUTLASS_BLOCK_FP8_SUPPORTED = True  # it was asked for on CPU
    from vllm.platforms.cuda import NonNvmlCudaPlatform
    from vllm.platforms.interface import DeviceCapability

    class Hopper(NonNvmlCudaPlatform):  # type: ignore[misc]
        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> Any:
            return DeviceCapability(9, 0)

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return "pretended"

        @classmethod
        def get_device_total_memory(cls, device_id: int = 0) -> int:
            return 80 * 2**30

    current_platform.__class__ = Hopper  # other modules hold the object


QUANTIZED = (
    *("compressed fp8 token", "fp8 dynamic", "online fp8", "compressed fp8 token, pass on"),
    *("compressed fp8 token, pass off", "compressed fp8 token, level 0", "compressed fp8 static", "fp8 block"),
    *("compressed int8 token", "unquantized"),
)
"""Cases of CASES whose layers are built, on the meta device."""


def _would_turn_the_pass_on(folder: Path, case: str, *, eager: bool) -> bool:
    import torch

    from serving_ops.integrations.vllm import layers, model_doctor, token_pass

    # The compiled model's own class imports passes that ask for CUDA's operators. Its layers are the same.
    model = model_doctor._build(_resolve(folder, case, eager=True))
    config = pickle.loads(pickle.dumps(_resolve(folder, case, eager=eager)))  # as it reaches a worker
    found = layers.survey([model], config, torch.device("cpu"))
    return token_pass.should_run([model], [spec for layer in found for spec in layer.specs], config)


def _turning_on(folder: Path) -> dict[str, dict[str, bool]]:
    return {
        case: {mode: _would_turn_the_pass_on(folder, case, eager=eager) for mode, eager in MODES.items()}
        for case in QUANTIZED
    }


ARCHITECTURES = ("Gemma2", "Gemma3", "Llama", "Qwen2", "Qwen3", "Qwen3Moe")
"""Models whose layers are built, on the meta device, to find the norms with one reader."""

TYPES = {"Gemma3": "gemma3_text", "Qwen3Moe": "qwen3_moe"}
"""Their `model_type`, where it is not the name in lower case."""


PAIRED = ("compressed fp8 token", "fp8 dynamic", "fp8 block", "compressed fp8 static", "fbgemm_fp8")
"""Cases of CASES whose layers are built as Qwen3's, to find the same."""


def _paired(folder: Path, architecture: str, case: str) -> list[str]:
    import torch

    from serving_ops.integrations.vllm import layers, model_doctor, quantized_pairs

    named = {
        "architectures": [f"{architecture}ForCausalLM"],
        "model_type": TYPES.get(architecture, architecture.lower()),
    }
    experts = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 128, "decoder_sparse_step": 1}
    config = _resolve(folder, case, eager=True, hidden_activation="gelu_pytorch_tanh", **named, **experts)
    pairs = quantized_pairs.pairs_of([model_doctor._build(config)], layers.activations(config, torch.device("meta")))
    return [f"{type(pair.norm).__name__} {type(pair.kernel).__name__}" for pair in pairs]


FUSED_BY_THE_PASS = ("compressed fp8 token", "compressed fp8 block", "fp8 block")


def _prewarmed(folder: Path, case: str) -> list[str]:
    import torch

    from serving_ops import NormSpec
    from serving_ops.integrations.vllm import model_doctor, quant_fusion

    config = _resolve(folder, case, eager=True)
    norm = NormSpec("rms_norm", MODEL["hidden_size"], torch.bfloat16, torch.bfloat16, torch.device("cpu"))
    specs = quant_fusion.specs([model_doctor._build(config)], [norm], config)
    return [f"{spec.fmt.granularity} {spec.fmt.group(spec.size)}" for spec in specs if spec.fmt is not None]


def _look_at_all(folder: Path) -> dict[str, Any]:
    os.environ["SERVING_OPS"] = "off"
    from vllm.model_executor.layers.quantization import QUANTIZATION_METHODS, get_quantization_config

    _resolve(folder, "unquantized", eager=True)  # this and the next import what vLLM needs, on CPU
    get_quantization_config("fp8")
    _pretend_a_hopper()
    from serving_ops.integrations.vllm import installed, register

    methods = {name: get_quantization_config(name).__name__ for name in QUANTIZATION_METHODS}
    found: dict[str, Any] = {}
    for switch in ("off", "auto"):
        os.environ["SERVING_OPS"] = switch
        register()
        found[switch] = {
            case: {mode: _look(folder, case, eager=eager, on=switch == "auto") for mode, eager in MODES.items()}
            for case in CASES
        }
    os.environ["SERVING_OPS"] = "off"
    pairs = {name: _paired(folder, name, "compressed int8 token") for name in ARCHITECTURES}
    pairs |= {case: _paired(folder, "Qwen3", case) for case in PAIRED}
    return {
        "methods": methods,
        "failures": installed.failures,
        "turning on": _turning_on(folder),
        **found,
        "pairs": pairs,
        "prewarmed": {case: _prewarmed(folder, case) for case in FUSED_BY_THE_PASS},
    }


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch, contextlib.redirect_stdout(sys.stderr):
        result = _look_at_all(Path(scratch))
    print(json.dumps(result))
