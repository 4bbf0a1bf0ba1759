"""Very small models with real checkpoints from a seed: a dense one, gated-delta-net hybrids and a Mamba-2.

Run by path: models.py {dense,dense_int8,hybrid,hybrid_without_experts,mamba2} DIRECTORY

The logits of a model with random weights lie so close that bf16 rounding picks the token. Here the output matrix
is the input embedding with its rows moved: the model leans to one successor of each token, by a margin, and what its
layers add still decides more than half of the last hidden state.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

VOCAB = 512
HIDDEN = 256
WEIGHT_STD = 0.08
EMBEDDING_STD = 1.8
LOGIT_SCALE = 1 / (HIDDEN**0.5 * EMBEDDING_STD)

_COMMON: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "intermediate_size": 512,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "initializer_range": WEIGHT_STD,
    "tie_word_embeddings": False,
    "bos_token_id": 1,
    "eos_token_id": 2,
}

_OF_ATTENTION = {"intermediate_size", "num_attention_heads", "num_key_value_heads", "max_position_embeddings"}


def dense_config() -> Any:
    """Qwen3: RMSNorm with and without residual, and on strided q and k views (heads of 128)."""
    from transformers import Qwen3Config

    return Qwen3Config(num_hidden_layers=2, head_dim=128, **_COMMON)


def hybrid_config() -> Any:
    """Qwen3-Next: a GDN layer with RMSNormGated (16 heads of 128), an attention layer with MoE, Gemma norms."""
    from transformers import Qwen3NextConfig

    return Qwen3NextConfig(
        num_hidden_layers=2,
        layer_types=["linear_attention", "full_attention"],
        head_dim=128,
        linear_num_key_heads=8,
        linear_num_value_heads=16,
        linear_key_head_dim=128,
        linear_value_head_dim=128,
        linear_conv_kernel_dim=4,
        mlp_only_layers=[0],
        decoder_sparse_step=1,
        num_experts=4,
        num_experts_per_tok=4,  # all: of two with near weights, rounding would pick one, 0.5 nats from the other
        moe_intermediate_size=128,
        shared_expert_intermediate_size=128,
        **_COMMON,
    )


def hybrid_without_experts_config() -> Any:
    """Qwen3.5: the same layers and norms with dense MLPs, within a model of language and vision that vLLM serves."""
    from transformers import Qwen3_5Config

    text = hybrid_config().to_dict()
    of_text = {key: text[key] for key in ("num_hidden_layers", "layer_types", "head_dim", *_COMMON)}
    of_text |= {key: value for key, value in text.items() if key.startswith("linear_")}
    vision = {"depth": 1, "hidden_size": 64, "intermediate_size": 64, "num_heads": 4, "out_hidden_size": HIDDEN}
    return Qwen3_5Config(text_config=of_text, vision_config=vision, tie_word_embeddings=False)


def mamba2_config() -> Any:
    """Mamba-2: Mixer2RMSNormGated over 2 groups, its gate a part of a wider projection; RMSNorm."""
    from transformers import Mamba2Config

    common = {key: value for key, value in _COMMON.items() if key not in _OF_ATTENTION}
    return Mamba2Config(num_hidden_layers=2, expand=2, head_dim=64, num_heads=8, state_size=64, n_groups=2, **common)


CONFIGS = {
    "dense": dense_config,
    "dense_int8": dense_config,
    "hybrid": hybrid_config,
    "hybrid_without_experts": hybrid_without_experts_config,
    "mamba2": mamba2_config,
}


def write_model(name: str, target: Path) -> None:
    """Write `config.json` and bf16 weights of one of `CONFIGS` into `target`; no tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    torch.manual_seed(0)
    config = CONFIGS[name]()
    auto = AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM
    model = auto.from_config(config, dtype=torch.bfloat16)
    with torch.no_grad():
        lean_to_one_successor(model)
    model.save_pretrained(target)
    if name == "dense_int8":
        quantize_to_int8(target)


_INT8: dict[str, Any] = {"type": "int", "num_bits": 8, "symmetric": True}
INT8_TOKEN: dict[str, Any] = {
    "quant_method": "compressed-tensors",
    "format": "int-quantized",
    "quantization_status": "compressed",
    "ignore": ["lm_head"],
    "config_groups": {
        "group_0": {
            "targets": ["Linear"],
            "weights": {**_INT8, "strategy": "channel", "dynamic": False},
            "input_activations": {**_INT8, "strategy": "token", "dynamic": True},
        }
    },
}
"""A checkpoint with one scale per output channel, whose inputs get one scale per token."""


def quantize_to_int8(folder: Path) -> None:
    """Quantize the projections of a checkpoint in place, as `INT8_TOKEN` says."""
    import torch
    from safetensors.torch import load_file, save_file

    file, config = folder / "model.safetensors", folder / "config.json"
    tensors = load_file(file)
    for name in [name for name in tensors if name.endswith("_proj.weight")]:
        weight = tensors[name].float()
        scale = weight.abs().amax(dim=1, keepdim=True) / 127
        tensors[name] = (weight / scale).round().to(torch.int8)
        tensors[f"{name}_scale"] = scale
    save_file(tensors, file, {"format": "pt"})
    config.write_text(json.dumps(json.loads(config.read_text()) | {"quantization_config": INT8_TOKEN}))


def lean_to_one_successor(model: Any) -> None:
    """Give a model its embeddings, and its norms weights unlike one, so that a lost weight or a wrong offset shows."""
    import torch

    for key, parameter in model.named_parameters():
        if "norm" in key:
            parameter.add_(torch.randn_like(parameter) * 0.2)
    embedding = model.get_input_embeddings().weight
    embedding.normal_(std=EMBEDDING_STD)
    model.get_output_embeddings().weight.copy_(embedding[torch.randperm(VOCAB)] * LOGIT_SCALE)


if __name__ == "__main__":
    write_model(sys.argv[1], Path(sys.argv[2]))
