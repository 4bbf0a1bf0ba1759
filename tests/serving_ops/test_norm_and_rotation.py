"""`qk_norm_rope` where it is unlike other ops: its numbers against the unfused sequence, its caches, wrong input."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from numerics import rms_error
from op_calls import copied, exact, make
from torch import Tensor

import serving_ops
from serving_ops import NormSpec, RopeSpec, reference, support
from serving_ops.ops import registry
from serving_ops.rope_reference import axis_of_pairs

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn
Q, KV, SIZE, TOKENS = 4, 2, 64, 6
OP = registry.find("qk_norm_rope")


def call_of(
    device: torch.device, tokens: int = TOKENS, weight_dtype: torch.dtype | None = BF16, **rotation: Any
) -> Any:
    """Arguments of a layer of 4 and 2 heads, at random."""
    rope = RopeSpec(num_kv_heads=KV, **rotation)
    spec = NormSpec("qk_norm_rope", SIZE, BF16, weight_dtype, device, heads=Q, rotation=rope)
    return make(spec, device, tokens)


def parts(call: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v, as heads."""
    q, k, v = call["qkv"].unflatten(1, (-1, SIZE)).split((Q, KV, KV), dim=1)
    return q, k, v


def unfused(x: Tensor, weight: Tensor | None, cos: Tensor, sin: Tensor) -> Tensor:
    """A norm, and a NeoX rotation in x's dtype, as engines compute them one after the other."""
    y = x if weight is None else reference.rms_norm(x, weight)
    a, b = y.chunk(2, dim=-1)
    cos, sin = cos.to(x.dtype)[:, None], sin.to(x.dtype)[:, None]
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


@pytest.mark.parametrize("weight_dtype", [BF16, torch.float32, None], ids=str)
def test_the_error_is_at_most_that_of_norms_followed_by_a_rotation(
    device: torch.device, weight_dtype: torch.dtype | None
) -> None:
    call = call_of(device, 200, weight_dtype)
    truth = parts(exact(OP, call))
    cos, sin = call["cos_sin_cache"][call["positions"]].chunk(2, dim=-1)
    apart = [unfused(x, call[name], cos, sin) for x, name in zip(parts(call), ("q_weight", "k_weight"), strict=False)]
    serving_ops.qk_norm_rope(**call)
    for got, want, other in zip(parts(call), truth, apart, strict=False):
        assert rms_error(got, want) <= rms_error(other, want)


def test_heads_are_normed_and_rounded_before_they_are_rotated(device: torch.device) -> None:
    call = call_of(device)
    normed = copied(call)
    q, k, _ = parts(normed)
    q.copy_(serving_ops.rms_norm(q, call["q_weight"]))
    k.copy_(serving_ops.rms_norm(k, call["k_weight"]))
    serving_ops.qk_norm_rope(**call)
    serving_ops.qk_norm_rope(**normed | {"q_weight": None, "k_weight": None})
    assert torch.equal(call["qkv"], normed["qkv"])


def test_without_caches_v_is_not_touched(device: torch.device) -> None:
    call = call_of(device)
    before = parts(call)[2].clone()
    call["qkv"].unflatten(1, (-1, SIZE))[0, Q + KV :] = torch.nan
    serving_ops.qk_norm_rope(**call)
    assert torch.equal(parts(call)[2][1:], before[1:])
    assert parts(call)[0].isfinite().all()


def test_q_and_k_apart_get_the_bits_that_they_get_in_one_tensor(device: torch.device) -> None:
    """Also in a view that has other elements between heads, such as gates."""
    call = call_of(device)
    q, k, _ = parts(copied(call))
    gated = torch.zeros(TOKENS, Q, 2 * SIZE, dtype=BF16, device=device)
    gated[..., :SIZE] = q
    serving_ops.qk_norm_rope(**call)
    serving_ops.qk_norm_rope(**call | {"qkv": gated[..., :SIZE], "k": k})
    assert torch.equal(gated[..., :SIZE], parts(call)[0])
    assert torch.equal(k, parts(call)[1])
    assert (gated[..., SIZE:] == 0).all()


def test_weight_offset_is_added_to_the_weights(device: torch.device) -> None:
    call = call_of(device, weight_dtype=torch.float32)
    one_more = copied(call) | {name: call[name] + 1 for name in ("q_weight", "k_weight")}
    serving_ops.qk_norm_rope(**call | {"weight_offset": 1.0})
    serving_ops.qk_norm_rope(**one_more)
    assert torch.equal(call["qkv"], one_more["qkv"])


def test_sections_say_which_position_rotates_a_pair() -> None:
    device = torch.device("cpu")
    assert axis_of_pairs((3, 2, 1), False, device).tolist() == [0, 0, 0, 1, 1, 2]
    assert axis_of_pairs((3, 2, 1), True, device).tolist() == [0, 1, 2, 0, 1, 0]


@pytest.mark.parametrize("interleaved", [False, True])
def test_three_equal_positions_rotate_as_one(device: torch.device, interleaved: bool) -> None:
    call = call_of(device)
    text, section = copied(call), {"mrope_section": (12, 10, 10), "mrope_interleaved": interleaved}
    serving_ops.qk_norm_rope(**call)
    serving_ops.qk_norm_rope(**text | section | {"positions": text["positions"].expand(3, TOKENS)})
    assert torch.equal(text["qkv"], call["qkv"])


# Caches


def cached(device: torch.device, **rotation: Any) -> dict[str, Any]:
    return call_of(device, has_cache=True, **rotation)


@pytest.mark.parametrize("block_size", [4, None])
def test_rotated_k_and_v_are_in_the_slots_and_nothing_else_is(device: torch.device, block_size: int | None) -> None:
    call = cached(device, block_size=block_size)
    slots = torch.tensor([5, -1, 0, 3], device=device)  # and none for the last two tokens
    before = {name: call[name].clone().flatten(0, -3) for name in ("key_cache", "value_cache")}
    serving_ops.qk_norm_rope(**call | {"slot_mapping": slots})
    for name, values in zip(before, parts(call)[1:], strict=True):
        before[name][[5, 0, 3]] = values[[0, 2, 3]]
        assert torch.equal(call[name].flatten(0, -3), before[name])


def test_caches_may_be_views_that_lie_in_turns(device: torch.device) -> None:
    """A block of keys and then one of values, as in vLLM, or heads before slots."""
    call = cached(device, block_size=4)
    plain, in_turns, heads_first = copied(call), copied(call), copied(call)
    blocks = call["key_cache"].shape[0]
    both = torch.zeros(blocks, 2, 4, KV, SIZE, dtype=BF16, device=device)
    in_turns |= {"key_cache": both[:, 0], "value_cache": both[:, 1]}
    by_heads = torch.zeros(2, blocks, KV, 4, SIZE, dtype=BF16, device=device)
    heads_first |= {"key_cache": by_heads[0].transpose(1, 2), "value_cache": by_heads[1].transpose(1, 2)}
    for call in (plain, in_turns, heads_first):
        for name in ("key_cache", "value_cache"):
            call[name].zero_()
        serving_ops.qk_norm_rope(**call)
        for name in ("key_cache", "value_cache"):
            assert torch.equal(call[name], plain[name])


def test_fp8_caches_hold_what_is_divided_by_the_scale_and_saturates(device: torch.device) -> None:
    call = cached(device, cache_dtype=FP8, block_size=None)
    call |= {"k_scale": torch.tensor(0.003, device=device), "v_scale": torch.tensor([0.5], device=device)}
    serving_ops.qk_norm_rope(**call)
    for name, values, scale in zip(("key_cache", "value_cache"), parts(call)[1:], (0.003, 0.5), strict=True):
        want = (values.float() / torch.tensor(scale, device=device)).clamp(-448, 448).to(FP8)
        assert torch.equal(call[name].float(), want.float())
    assert call["key_cache"].float().abs().max() == 448


def test_an_fp8_cache_without_a_scale_holds_the_values(device: torch.device) -> None:
    call = cached(device, cache_dtype=FP8, block_size=None) | {"k_scale": None, "v_scale": None}
    serving_ops.qk_norm_rope(**call)
    assert torch.equal(call["value_cache"].float(), parts(call)[2].to(FP8).float())


# Wrong input


def index(*values: int) -> Tensor:
    return torch.tensor(values)


WRONG = {
    "a position beyond the table": (
        {"positions": index(0, 1, 2, 3, 4, 8)},
        "positions is a tensor that holds 8: allowed are numbers of 0 to 7",
    ),
    "a negative position": ({"positions": index(0, 1, 2, 3, 4, -1)}, "positions is a tensor that holds -1"),
    "a slot beyond the cache": (
        {"slot_mapping": index(0, 16)},
        "slot_mapping is a tensor that holds 16: allowed are numbers of at most 15",
    ),
    "no heads": ({"num_kv_heads": 0}, "num_kv_heads is 0: it must be at least 1"),
    "another number of heads": ({"num_q_heads": 5}, r"qkv.shape is \(6, 512\): .* = 576"),
    "sections of another sum": ({"mrope_section": (8, 8, 8)}, r"mrope_section is \[8, 8, 8\]: .* 32"),
    "two sections": ({"mrope_section": (16, 16)}, r"mrope_section is \[16, 16\]: it must be three"),
    "interleaved sections that are not given": ({"mrope_interleaved": True}, "mrope_interleaved is True"),
    "three positions without sections": ({"positions": index(0).expand(3, 6)}, r"positions.shape is \(3, 6\)"),
    "an odd rotary_dim": ({"rotary_dim": 31}, "rotary_dim is 31: it must be even, and at most head_dim = 64"),
    "a table for another rotary_dim": ({"rotary_dim": 32}, r"cos_sin_cache.shape is \(8, 64\): .* rotary_dim = 32"),
    "a style that is not said": ({"is_neox": None}, "is_neox is None: it must be True or False"),
    "turns that are not said": ({"mrope_interleaved": None}, "mrope_interleaved is None: it must be True or False"),
    "one weight": ({"k_weight": None}, "k_weight is None: q_weight is given"),
    "no cache for v": ({"value_cache": None}, "value_cache is None: .* together"),
    "caches without slots": ({"slot_mapping": None}, "slot_mapping is None: .* together"),
    "a scale without FP8": ({"k_scale": torch.ones(())}, "k_scale is given: .*float8_e4m3fn.*bfloat16"),
    "one scale": ({"v_scale": torch.ones(())}, "k_scale is None: v_scale is given"),
    "v without k": ({"v": torch.ones(6, 128, dtype=BF16)}, "v is given: it is taken where k is given"),
    "qkv beside k": (
        {"k": torch.ones(6, 128, dtype=BF16)},
        r"qkv.shape is \(6, 512\): with k it must be \(6, 256\) or \(6, 4, 64\)",
    ),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_input_is_named_and_nothing_is_written(what: str) -> None:
    changes, message = WRONG[what]
    call = cached(torch.device("cpu")) | changes
    before = copied(call)
    with pytest.raises(RuntimeError, match=f"serving_ops: {message}"):
        serving_ops.qk_norm_rope(**call)
    assert all(torch.equal(call[name], value) for name, value in before.items() if isinstance(value, Tensor))


OVERFLOWING = {
    "num_q_heads": ({"num_q_heads": 2**58 + 2}, "qkv.shape is"),
    "num_kv_heads": ({"num_kv_heads": 2**57 + 1}, "qkv.shape is"),
    "head_dim": ({"head_dim": 2**62 + 64}, "qkv.shape is"),
    "mrope_section": ({"mrope_section": (2**62, 2**62, 32)}, "mrope_section is"),
}
"""What is 4 heads of 64 elements, or 32 pairs, in arithmetic of 64 bits that wraps around."""


def refusal(call: dict[str, Any]) -> str:
    """Why C++ does not take the call on CPU, though Python has not checked it."""
    return support.why_not_cpu(OP.name, *OP.unbind(OP.bind((), call)).values())


@pytest.mark.parametrize("name", OVERFLOWING)
def test_numbers_too_large_for_arithmetic_of_64_bits_are_named(name: str) -> None:
    changes, message = OVERFLOWING[name]
    qkv, positions, table = torch.ones(3, 256, dtype=BF16), index(0, 1, 2), torch.ones(8, 64)
    plain = {"num_q_heads": 2, "num_kv_heads": 1, "head_dim": 64}
    call = {"qkv": qkv, "positions": positions, "cos_sin_cache": table, "q_weight": None, "k_weight": None} | plain
    if serving_ops.cpp_library() is not None:
        assert not refusal(call)
        assert refusal(call | changes)
    with pytest.raises(RuntimeError, match=message):
        serving_ops.qk_norm_rope(**call | changes)


def test_k_apart_with_caches_needs_v() -> None:
    call = cached(torch.device("cpu"), separate=True)
    with pytest.raises(RuntimeError, match="v is None: with k and value_cache, it must be given"):
        serving_ops.qk_norm_rope(**call | {"v": None})


def test_a_compiled_graph_writes_into_the_very_buffers(device: torch.device) -> None:
    """Into a view of the buffer that a product would fill, and into caches, without copies."""
    call = cached(device)
    expected = copied(call)
    serving_ops.qk_norm_rope(**expected)
    tensors = {name: value for name, value in call.items() if isinstance(value, Tensor)}
    places = {name: value.data_ptr() for name, value in tensors.items()}
    options = {name: value for name, value in call.items() if name not in tensors}
    torch._dynamo.reset()

    @torch.compile(fullgraph=True)
    def attention(tensors: dict[str, Tensor]) -> Tensor:
        serving_ops.qk_norm_rope(**tensors, **options)
        return tensors["qkv"][:, : Q * SIZE] * 2

    out = attention(tensors)
    assert torch.equal(out, expected["qkv"][:, : Q * SIZE] * 2)
    for name in ("qkv", "key_cache", "value_cache"):
        assert torch.equal(call[name], expected[name])
        assert call[name].data_ptr() == places[name]


def test_bytes_moved_are_those_of_q_and_k_and_of_what_is_cached() -> None:
    row = TOKENS * SIZE * 2
    plain = call_of(torch.device("meta"))
    assert registry.bytes_moved(OP, plain) == 2 * (Q + KV) * row
    assert registry.bytes_moved(OP, cached(torch.device("meta"))) == (2 * (Q + KV) + 3 * KV) * row
