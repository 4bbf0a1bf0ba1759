"""Run by path: qwen3_5_model.py DIRECTORY writes a small Qwen3.5 with a real checkpoint, as the vLLM tests' models are.

A hybrid without a mixture of experts: GemmaRMSNorm, RMSNormGated with heads of 128, and no library for experts.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "vllm"))

import models

TEXT: dict[str, Any] = {
    **models._COMMON,
    "num_hidden_layers": 4,
    "layer_types": ["linear_attention", "full_attention"] * 2,
    "full_attention_interval": 2,
    "head_dim": 128,
    "linear_num_key_heads": 8,
    "linear_num_value_heads": 16,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_conv_kernel_dim": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25},
}
VISION = {"depth": 1, "hidden_size": 256, "intermediate_size": 256, "num_heads": 4, "deepstack_visual_indexes": []}


def main() -> None:
    import torch
    from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

    torch.manual_seed(0)
    text = {key: value for key, value in TEXT.items() if key != "tie_word_embeddings"}
    vision = {**VISION, "out_hidden_size": models.HIDDEN}
    config = Qwen3_5Config(text_config=text, vision_config=vision, tie_word_embeddings=False)
    model = Qwen3_5ForConditionalGeneration(config).to(torch.bfloat16)
    with torch.no_grad():
        models.lean_to_one_successor(model)
    model.save_pretrained(sys.argv[1])


if __name__ == "__main__":
    main()
