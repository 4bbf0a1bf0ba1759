"""What is wrong about a call of `qk_norm_rope`. As `serving_ops.checks`; a call is its arguments by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from serving_ops.checks import FLOATING, fail, same_sizes
from serving_ops.rope_reference import in_slots

INDICES = (torch.int32, torch.int64)
FP8 = torch.float8_e4m3fn

Call = dict[str, Any]


def qkv(x: Tensor, call: Call) -> None:
    """In one tensor, or q alone where k is given."""
    for name in ("num_q_heads", "num_kv_heads", "head_dim"):
        if call[name] < 1:
            fail(name, call[name], "it must be at least 1")
    if x.dtype not in FLOATING:
        fail("qkv.dtype", x.dtype, "allowed are float16, bfloat16, float32 and float64")
    if call["k"] is not None:
        _heads("qkv", x, call, call["num_q_heads"])
        return
    width = (call["num_q_heads"] + 2 * call["num_kv_heads"]) * call["head_dim"]
    if x.dim() != 2 or x.shape[1] != width:
        allowed = f"without k it must be (num_tokens, (num_q_heads + 2 * num_kv_heads) * head_dim = {width})"
        fail("qkv.shape", tuple(x.shape), allowed)


def keys(k: Tensor | None, call: Call) -> None:
    if k is not None:
        _beside_q("k", k, call)


def values(v: Tensor | None, call: Call) -> None:
    if v is not None and call["k"] is None:
        fail("v", "given", "it is taken where k is given; without k, v lies in qkv")
    if v is None and call["k"] is not None and call["value_cache"] is not None:
        fail("v", "None", "with k and value_cache, it must be given")
    if v is not None:
        _beside_q("v", v, call)


def _beside_q(name: str, tensor: Tensor, call: Call) -> None:
    x = call["qkv"]
    if tensor.dtype != x.dtype:
        fail(f"{name}.dtype", tensor.dtype, f"it must be qkv's, {x.dtype}")
    _on_its_device(name, tensor, call)
    _heads(name, tensor, call, call["num_kv_heads"])


def _heads(name: str, tensor: Tensor, call: Call, heads: int) -> None:
    tokens, size = call["qkv"].shape[0] if call["qkv"].dim() else 0, call["head_dim"]
    if not any(same_sizes(tensor.shape, shape) for shape in ((tokens, heads * size), (tokens, heads, size))):
        allowed = f"with k it must be ({tokens}, {heads * size}) or ({tokens}, {heads}, {size})"
        fail(f"{name}.shape", tuple(tensor.shape), allowed)


def _on_its_device(name: str, tensor: Tensor, call: Call) -> None:
    if tensor.device != call["qkv"].device:
        fail(f"{name}.device", tensor.device, f"it must be qkv's, {call['qkv'].device}")


def _indices(name: str, tensor: Tensor, call: Call) -> None:
    if tensor.dtype not in INDICES:
        fail(f"{name}.dtype", tensor.dtype, "allowed are torch.int32 and torch.int64")
    _on_its_device(name, tensor, call)


def positions(tensor: Tensor, call: Call) -> None:
    _indices("positions", tensor, call)
    tokens = call["qkv"].shape[0]
    if same_sizes(tensor.shape, (tokens,)):
        return
    if call["mrope_section"] is None or not same_sizes(tensor.shape, (3, tokens)):
        allowed = f"it must be (num_tokens,) = ({tokens},), or, with mrope_section, (3, {tokens})"
        fail("positions.shape", tuple(tensor.shape), allowed)


def table(tensor: Tensor, call: Call) -> None:
    """Cosines and sines, with rotary_dim and mrope_section, which it has to have room for."""
    x, size, rotary_dim = call["qkv"], call["head_dim"], call["rotary_dim"]
    if tensor.dtype not in (x.dtype, torch.float32):
        fail("cos_sin_cache.dtype", tensor.dtype, f"allowed are qkv's, {x.dtype}, and torch.float32")
    _on_its_device("cos_sin_cache", tensor, call)
    if rotary_dim is not None and not (0 <= rotary_dim <= size and rotary_dim % 2 == 0):
        fail("rotary_dim", rotary_dim, f"it must be even, and at most head_dim = {size}")
    allowed = f"an even number up to head_dim = {size}" if rotary_dim is None else f"rotary_dim = {rotary_dim}"
    if tensor.dim() != 2 or tensor.shape[1] not in (range(0, size + 1, 2) if rotary_dim is None else (rotary_dim,)):
        fail("cos_sin_cache.shape", tuple(tensor.shape), f"it must be (positions, rotary_dim), with {allowed}")
    section = call["mrope_section"]
    if section is not None and (len(section) != 3 or min(section) < 0 or 2 * sum(section) != tensor.shape[1]):
        allowed = f"it must be three numbers of pairs, with the sum rotary_dim / 2 = {tensor.shape[1] // 2}"
        fail("mrope_section", list(section), allowed)
    if call["mrope_interleaved"] and section is None:
        fail("mrope_interleaved", True, "it must be False where mrope_section is None")


def weight(name: str, tensor: Tensor | None, call: Call) -> None:
    """One of two. They are given together."""
    if tensor is None:
        other = "k_weight" if name == "q_weight" else "q_weight"
        if call[other] is not None:
            fail(name, "None", f"{other} is given, so it must be given too; both are None for no norm")
        return
    x, size = call["qkv"], call["head_dim"]
    if tensor.dtype not in (x.dtype, torch.float32):
        fail(f"{name}.dtype", tensor.dtype, f"allowed are qkv's, {x.dtype}, and torch.float32")
    _on_its_device(name, tensor, call)
    if tensor.dim() != 1 or tensor.shape[0] != size:
        fail(f"{name}.shape", tuple(tensor.shape), f"it must be (head_dim,) = ({size},)")


def key_cache(cache: Tensor | None, call: Call) -> None:
    """With the rest that is given together with it."""
    for name in ("value_cache", "slot_mapping"):
        if (cache is None) != (call[name] is None):
            value = "None" if call[name] is None else "given"
            fail(name, value, "key_cache, value_cache and slot_mapping are given together, or none of them")
    if cache is None:
        return
    x, tail = call["qkv"], (call["num_kv_heads"], call["head_dim"])
    if cache.dtype not in (x.dtype, FP8):
        fail("key_cache.dtype", cache.dtype, f"allowed are qkv's, {x.dtype}, and {FP8}")
    _on_its_device("key_cache", cache, call)
    if cache.dim() not in (3, 4) or tuple(cache.shape[-2:]) != tail:
        allowed = f"it must be (num_blocks, block_size, {tail[0]}, {tail[1]}) or (num_slots, {tail[0]}, {tail[1]})"
        fail("key_cache.shape", tuple(cache.shape), allowed)


def value_cache(cache: Tensor | None, call: Call) -> None:
    other = call["key_cache"]
    if cache is None or other is None:
        return
    if cache.dtype != other.dtype:
        fail("value_cache.dtype", cache.dtype, f"it must be key_cache's, {other.dtype}")
    _on_its_device("value_cache", cache, call)
    if not same_sizes(cache.shape, other.shape):
        fail("value_cache.shape", tuple(cache.shape), f"it must be key_cache's, {tuple(other.shape)}")


def slot_mapping(tensor: Tensor | None, call: Call) -> None:
    if tensor is None:
        return
    _indices("slot_mapping", tensor, call)
    tokens = call["qkv"].shape[0]
    if tensor.dim() != 1 or tensor.shape[0] > tokens:
        fail("slot_mapping.shape", tuple(tensor.shape), f"it must be (n,), with n at most num_tokens = {tokens}")


def scale(name: str, tensor: Tensor | None, call: Call) -> None:
    """k_scale or v_scale."""
    other = "v_scale" if name == "k_scale" else "k_scale"
    if tensor is None:
        if call[other] is not None:
            fail(name, "None", f"{other} is given, so it must be given too")
        return
    cache = call["key_cache"]
    if cache is None or cache.dtype != FP8:
        value = "None" if cache is None else cache.dtype
        fail(name, "given", f"it is taken where the caches are {FP8}, and key_cache is {value}")
    if tensor.dtype != torch.float32:
        fail(f"{name}.dtype", tensor.dtype, "it must be torch.float32")
    _on_its_device(name, tensor, call)
    if tensor.numel() != 1:
        fail(f"{name}.shape", tuple(tensor.shape), "it must have one element")


def index_values(call: Call) -> None:
    """Whether positions are in the table, and slots in the caches."""
    _within("positions", call["positions"], 0, call["cos_sin_cache"].shape[0])
    if call["slot_mapping"] is not None:
        blocks, slots, _, _ = in_slots(call["key_cache"]).shape
        _within("slot_mapping", call["slot_mapping"], None, blocks * slots)


def _within(name: str, tensor: Tensor, least: int | None, end: int) -> None:
    if tensor.numel() == 0:
        return
    low, high = (int(value) for value in tensor.aminmax())
    below = "at most" if least is None else f"{least} to"
    if high >= end or (least is not None and low < least):
        fail(name, f"a tensor that holds {high if high >= end else low}", f"allowed are numbers of {below} {end - 1}")
