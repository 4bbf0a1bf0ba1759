"""Models to serve without a download: a config.json and a word-level tokenizer; weights are made up at load.

Speed does not depend on the weights' values: the shapes of a known model are enough.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from serving_ops.bench_e2e import quantized_presets

PRESETS = ("dense", "dense-8b", "hybrid", "mamba2")
QUANTIZED = ("dense", "dense-8b")  # with `quantized_presets.QUANTIZATIONS`
MAX_POSITIONS = 16384  # tokens; longer prompts need a real model

# vLLM refuses a prompt with more characters than tokens fit, times the longest token's length. Each word brings a space
# that no token has, so the longest token must be longer than a word and a space.
SPECIAL_TOKENS = ("<|unknown|>", "<|end of text|>")

# Qwen3-0.6B. On CPU 6 of its 28 layers and a vocabulary cut by the same factor: one decode step stays
# near 10 ms on 2 cores and the norms keep their share of it.
DENSE: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_attention_heads": 16,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "max_position_embeddings": MAX_POSITIONS,
    "dtype": "bfloat16",
}
DENSE_SIZE = {
    "cpu": {"num_hidden_layers": 6, "vocab_size": 32768},
    "cuda": {"num_hidden_layers": 28, "vocab_size": 151936},
}

# Qwen3-8B. On CPU 2 of its 36 layers.
DENSE_8B: dict[str, Any] = {
    **DENSE,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_attention_heads": 32,
    "tie_word_embeddings": False,
}
DENSE_8B_SIZE = {
    "cpu": {"num_hidden_layers": 2, "vocab_size": 32768},
    "cuda": {"num_hidden_layers": 36, "vocab_size": 151936},
}

# Three gated-delta-net layers to one of full attention, as in Qwen3-Next and Qwen3.5.
HYBRID: dict[str, Any] = {
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "partial_rotary_factor": 0.25,
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "max_position_embeddings": MAX_POSITIONS,
    "dtype": "bfloat16",
}

# vLLM loads a Qwen3-Next only if at least one of its layers is a mixture of experts: here the last one.
QWEN3_NEXT: dict[str, Any] = {
    **HYBRID,
    "architectures": ["Qwen3NextForCausalLM"],
    "model_type": "qwen3_next",
    "vocab_size": 32768,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 8,
    "linear_num_key_heads": 8,
    "linear_num_value_heads": 16,
    "mlp_only_layers": [0, 1, 2, 3, 4, 5, 6],
    "decoder_sparse_step": 1,
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 512,
    "shared_expert_intermediate_size": 512,
}

# On CUDA a dense Qwen3.5: no mixture of experts, so it also runs where vLLM's MoE library is missing.
QWEN3_5_TEXT: dict[str, Any] = {
    **HYBRID,
    "model_type": "qwen3_5_text",
    "vocab_size": 151936,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 32,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},  # SGLang asks for it
}
QWEN3_5: dict[str, Any] = {
    "architectures": ["Qwen3_5ForConditionalGeneration"],
    "model_type": "qwen3_5",
    "dtype": "bfloat16",
    "tie_word_embeddings": True,
    "text_config": QWEN3_5_TEXT,
    "vision_config": {
        "model_type": "qwen3_5",
        "depth": 1,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_heads": 2,
        "out_hidden_size": 2048,
        "deepstack_visual_indexes": [],
    },
}

# mamba2-780m, its gated norm over one group of 3072. On CPU 6 of its 48 layers.
MAMBA2: dict[str, Any] = {
    "architectures": ["Mamba2ForCausalLM"],
    "model_type": "mamba2",
    "hidden_size": 1536,
    "state_size": 128,
    "expand": 2,
    "head_dim": 64,
    "num_heads": 48,
    "n_groups": 1,
    "conv_kernel": 4,
    "vocab_size": 50288,
    "tie_word_embeddings": True,
    "max_position_embeddings": MAX_POSITIONS,
    "dtype": "bfloat16",
}
MAMBA2_LAYERS = {"cpu": 6, "cuda": 48}


def write_preset(name: str, directory: Path, device: str = "cpu", quantized: str | None = None) -> Path:
    """Write preset `name` for `device` ("cpu" or "cuda") into `directory` and return it.

    quantized: one of `quantized_presets.QUANTIZATIONS`, for a preset in QUANTIZED.

    The tokenizer lies in a folder of its own, `tokenizer_of(directory)`: beside a Qwen3.5's config.json
    transformers reads it as that model's tokenizer class. Raises ValueError for a name not in PRESETS.
    """
    config = preset_config(name, device) | quantized_presets.of_checkpoint(quantized)
    tokenizer = tokenizer_of(directory)
    tokenizer.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    vocab_size = config.get("text_config", config)["vocab_size"]
    for file, content in _tokenizer(vocab_size).items():
        (tokenizer / file).write_text(json.dumps(content))
    return directory


def tokenizer_of(directory: Path) -> Path:
    return directory / "tokenizer"


def preset_config(name: str, device: str) -> dict[str, Any]:
    if name == "dense":
        return {**DENSE, **DENSE_SIZE[device]}
    if name == "dense-8b":
        return {**DENSE_8B, **DENSE_8B_SIZE[device]}
    if name == "hybrid":
        return QWEN3_NEXT if device == "cpu" else QWEN3_5
    if name == "mamba2":
        return {**MAMBA2, "num_hidden_layers": MAMBA2_LAYERS[device]}
    raise ValueError(f"preset is {name!r}; there are {', '.join(PRESETS)}")


def preset_engine_args(name: str, device: str, engine: str = "vllm", quantized: str | None = None) -> dict[str, Any]:
    """What an engine has to be told beside the path: no weights on disk, and no pictures for the Qwen3.5."""
    on_language_alone = LANGUAGE_ALONE[engine] if (name, device) == ("hybrid", "cuda") else {}
    return {"load_format": "dummy", **on_language_alone, **quantized_presets.of_engine(quantized)}


LANGUAGE_ALONE: dict[str, dict[str, Any]] = {
    "vllm": {"language_model_only": True},
    # SGLang builds the tower all the same; this keeps it off a library that attention elsewhere may not need.
    "sglang": {"enable_multimodal": False, "mm_attention_backend": "sdpa"},
}

SGLANG_ON_CPU: dict[str, Any] = {
    "device": "cpu",
    "attention_backend": "torch_native",
    "sampling_backend": "pytorch",
    "grammar_backend": "none",
    "disable_cuda_graph": True,
    "disable_overlap_schedule": True,
    "sleep_on_idle": True,
}
"""What SGLang needs where the CPU has no AMX. Overlap is with a GPU's work; an idle scheduler would poll on a core."""


def _tokenizer(vocab_size: int) -> dict[str, dict[str, Any]]:
    """One word a token, so a prompt of n random tokens survives decoding and encoding with its length."""
    words = [*SPECIAL_TOKENS, *(f"w{index}" for index in range(len(SPECIAL_TOKENS), vocab_size))]
    unknown, end = SPECIAL_TOKENS
    special = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    added = [{"id": index, "content": token, **special} for index, token in enumerate(SPECIAL_TOKENS)]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": {"type": "WhitespaceSplit"},
        "post_processor": None,
        "decoder": None,
        "model": {
            "type": "WordLevel",
            "vocab": {word: index for index, word in enumerate(words)},
            "unk_token": unknown,
        },
    }
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "unk_token": unknown,
        "eos_token": end,
        "model_max_length": MAX_POSITIONS,
        "clean_up_tokenization_spaces": False,
    }
    # vLLM looks for a configuration beside the tokenizer, twice and two seconds apart if there is none.
    return {
        "tokenizer.json": tokenizer,
        "tokenizer_config.json": settings,
        # The version keeps transformers from taking it for an old Mistral tokenizer, and warning.
        "config.json": {"model_type": "qwen3", "transformers_version": "5.0.0"},
    }
