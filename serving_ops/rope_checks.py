"""What is wrong input of `qk_norm_rope`, said as in `serving_ops.checks`. A call is its arguments by name."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from serving_ops.checks import FLOATING, fail, fits, same_sizes
from serving_ops.rope_reference import in_slots

FP8 = torch.float8_e4m3fn

Call = dict[str, Any]


def check(call: Call) -> None:
    """Look at shapes, dtypes, devices and options; read no address."""
    _check_heads(call)
    x, size, section = call["qkv"], call["head_dim"], call["mrope_section"]
    tokens = x.shape[0]
    for name in ("positions", "slot_mapping"):
        _check_tensor(name, call, torch.int32, torch.int64)
    for name in ("cos_sin_cache", "q_weight", "k_weight"):
        _check_tensor(name, call, x.dtype, torch.float32)
    by_three = section is not None and same_sizes(call["positions"].shape, (3, tokens))
    if not by_three and not same_sizes(call["positions"].shape, (tokens,)):
        allowed = f"it must be (num_tokens,) = ({tokens},), or, with mrope_section, (3, {tokens})"
        fail("positions.shape", tuple(call["positions"].shape), allowed)
    _check_rotation(call)
    for name, other in (("q_weight", "k_weight"), ("k_weight", "q_weight")):
        _check_with(name, other, call, "; both are None for no norm")
        weight = call[name]
        if weight is not None and (weight.dim() != 1 or weight.shape[0] != size):
            fail(f"{name}.shape", tuple(weight.shape), f"it must be (head_dim,) = ({size},)")
    _check_caches(call)


def _check_tensor(name: str, call: Call, *dtypes: torch.dtype) -> None:
    """The dtype and the device of a tensor beside qkv."""
    if call[name] is not None:
        fits(name, call[name], call["qkv"].device, *dtypes, beside="qkv")


def _check_with(name: str, other: str, call: Call, note: str = "") -> None:
    if call[name] is None and call[other] is not None:
        fail(name, "None", f"{other} is given, so it must be given too{note}")


def _check_heads(call: Call) -> None:
    """q, k and v in one tensor, or apart where k is given."""
    for name in ("num_q_heads", "num_kv_heads", "head_dim"):
        if call[name] < 1:
            fail(name, call[name], "it must be at least 1")
    x, k, v = call["qkv"], call["k"], call["v"]
    if x.dtype not in FLOATING:
        fail("qkv.dtype", x.dtype, "allowed are float16, bfloat16, float32 and float64")
    width = (call["num_q_heads"] + 2 * call["num_kv_heads"]) * call["head_dim"]
    if k is None and (x.dim() != 2 or x.shape[1] != width):
        allowed = f"without k it must be (num_tokens, (num_q_heads + 2 * num_kv_heads) * head_dim = {width})"
        fail("qkv.shape", tuple(x.shape), allowed)
    tokens, size = x.shape[0] if x.dim() else 0, call["head_dim"]
    for name, tensor in {} if k is None else {"qkv": x, "k": k, "v": v}.items():
        heads = call["num_q_heads" if name == "qkv" else "num_kv_heads"]
        shapes = (tokens, heads * size), (tokens, heads, size)
        _check_tensor(name, call, x.dtype)
        if tensor is not None and not any(same_sizes(tensor.shape, shape) for shape in shapes):
            fail(f"{name}.shape", tuple(tensor.shape), f"with k it must be {shapes[0]} or {shapes[1]}")
    if v is not None and k is None:
        fail("v", "given", "it is taken where k is given; without k, v lies in qkv")
    if v is None and k is not None and call["value_cache"] is not None:
        fail("v", "None", "with k and value_cache, it must be given")


def _check_rotation(call: Call) -> None:
    """rotary_dim and mrope_section, which the table has to have room for."""
    table, size, rotary_dim, section = (
        call[name] for name in ("cos_sin_cache", "head_dim", "rotary_dim", "mrope_section")
    )
    if rotary_dim is not None and not (0 <= rotary_dim <= size and rotary_dim % 2 == 0):
        fail("rotary_dim", rotary_dim, f"it must be even, and at most head_dim = {size}")
    allowed = f"an even number up to head_dim = {size}" if rotary_dim is None else f"rotary_dim = {rotary_dim}"
    if table.dim() != 2 or table.shape[1] not in (range(0, size + 1, 2) if rotary_dim is None else (rotary_dim,)):
        fail("cos_sin_cache.shape", tuple(table.shape), f"it must be (positions, rotary_dim), with {allowed}")
    if section is not None and (len(section) != 3 or min(section) < 0 or 2 * sum(section) != table.shape[1]):
        allowed = f"it must be three numbers of pairs, with the sum rotary_dim / 2 = {table.shape[1] // 2}"
        fail("mrope_section", list(section), allowed)
    if call["mrope_interleaved"] and section is None:
        fail("mrope_interleaved", True, "it must be False where mrope_section is None")


def _check_caches(call: Call) -> None:
    x, keys, values, slots = (call[name] for name in ("qkv", "key_cache", "value_cache", "slot_mapping"))
    for name in ("value_cache", "slot_mapping"):
        if (keys is None) != (call[name] is None):
            value = "None" if call[name] is None else "given"
            fail(name, value, "key_cache, value_cache and slot_mapping are given together, or none of them")
    if keys is not None:
        tail = (call["num_kv_heads"], call["head_dim"])
        _check_tensor("key_cache", call, x.dtype, FP8)
        if keys.dim() not in (3, 4) or tuple(keys.shape[-2:]) != tail:
            allowed = f"it must be (num_blocks, block_size, {tail[0]}, {tail[1]}) or (num_slots, {tail[0]}, {tail[1]})"
            fail("key_cache.shape", tuple(keys.shape), allowed)
        _check_tensor("value_cache", call, keys.dtype)
        if not same_sizes(values.shape, keys.shape):
            fail("value_cache.shape", tuple(values.shape), f"it must be key_cache's, {tuple(keys.shape)}")
        if slots.dim() != 1 or slots.shape[0] > x.shape[0]:
            allowed = f"it must be (n,), with n at most num_tokens = {x.shape[0]}"
            fail("slot_mapping.shape", tuple(slots.shape), allowed)
    for name, other in (("k_scale", "v_scale"), ("v_scale", "k_scale")):
        _check_with(name, other, call)
        scale = call[name]
        if scale is not None and (keys is None or keys.dtype != FP8):
            value = "None" if keys is None else keys.dtype
            fail(name, "given", f"it is taken where the caches are {FP8}, and key_cache is {value}")
        _check_tensor(name, call, torch.float32)
        if scale is not None and scale.numel() != 1:
            fail(f"{name}.shape", tuple(scale.shape), "it must have one element")


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
