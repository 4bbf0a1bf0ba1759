"""`qk_norm_rope` without norms against the rotary embeddings of the installed vLLM, in fp32."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from vllm.config import VllmConfig, set_current_vllm_config
from vllm.model_executor.layers.rotary_embedding.base import RotaryEmbedding
from vllm.model_executor.layers.rotary_embedding.mrope import MRotaryEmbedding

import serving_ops

Q, KV, SIZE, TOKENS, POSITIONS = 4, 2, 64, 9, 32


@pytest.fixture(autouse=True)
def config() -> Iterator[None]:
    with set_current_vllm_config(VllmConfig()):
        yield


def qkv_of_both(rope: Any, positions: torch.Tensor, **options: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """qkv as vLLM rotates it, and as we do."""
    qkv = torch.randn(TOKENS, (Q + 2 * KV) * SIZE)
    q, k, v = qkv.clone().split((Q * SIZE, KV * SIZE, KV * SIZE), dim=1)
    q, k = rope.forward_native(positions, q.contiguous(), k.contiguous())
    heads = {"num_q_heads": Q, "num_kv_heads": KV, "head_dim": SIZE, "rotary_dim": rope.rotary_dim}
    serving_ops.qk_norm_rope(qkv, positions, rope.cos_sin_cache, None, None, **heads, **options)
    return torch.cat((q, k, v), dim=1), qkv


@pytest.mark.parametrize("is_neox", [True, False])
@pytest.mark.parametrize("rotary_dim", [SIZE, SIZE // 4])
def test_a_rotation_is_that_of_vllm(is_neox: bool, rotary_dim: int) -> None:
    rope = RotaryEmbedding(SIZE, rotary_dim, POSITIONS, 10000, is_neox, torch.float32)
    theirs, ours = qkv_of_both(rope, torch.randint(POSITIONS, (TOKENS,)), is_neox=is_neox)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("interleaved", [True, False])
@pytest.mark.parametrize(("rotary_dim", "section"), [(SIZE, [14, 10, 8]), (SIZE // 2, [8, 4, 4])])
def test_a_rotation_by_three_positions_is_that_of_vllm(interleaved: bool, rotary_dim: int, section: list[int]) -> None:
    rope = MRotaryEmbedding(SIZE, rotary_dim, POSITIONS, 10000, True, torch.float32, section, interleaved)
    positions = torch.randint(POSITIONS, (3, TOKENS))
    theirs, ours = qkv_of_both(rope, positions, mrope_section=section, mrope_interleaved=interleaved)
    torch.testing.assert_close(ours, theirs)
