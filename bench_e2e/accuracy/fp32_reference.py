"""The same weights in fp32, by transformers on CPU: what the engines' logits are compared with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def tokens_of(model: Path, text: str) -> list[int]:
    import transformers

    tokens: list[int] = transformers.AutoTokenizer.from_pretrained(model)(text).input_ids
    return tokens


def reference_logits(model: Path, tokens: list[int]) -> Tensor:
    """(tokens - 1, vocabulary), fp32: of every position but the last."""
    import torch
    import transformers

    exact = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits: Tensor = exact(torch.tensor([tokens])).logits[0, :-1]
    return logits
