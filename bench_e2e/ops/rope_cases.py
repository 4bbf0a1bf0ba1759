"""The cases of `qk_norm_rope`: their tensors, the plain formula, and what is right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from serving_ops import reference, rope_reference
from serving_ops.bench_e2e.ops.cases import Case

BLOCK_SIZE = 16
POSITIONS = 40960
THETA = 1e6  # both as in Qwen3's configuration

Arguments = Mapping[str, Any]  # of the op, by name


def make(case: Case, device: str) -> dict[str, Any]:
    """A call of the op. Slots are in no order, and caches start as NaN."""
    num_tokens, num_q_heads, num_kv_heads, head_dim = case.shape
    made = {"dtype": case.torch_dtype, "device": device}
    frequencies = THETA ** -(torch.arange(0, head_dim, 2, device=device) / head_dim)
    angles = torch.arange(POSITIONS, device=device)[:, None] * frequencies
    call: dict[str, Any] = {
        "qkv": torch.empty(num_tokens, (num_q_heads + 2 * num_kv_heads) * head_dim, **made).normal_(),
        "positions": torch.randint(POSITIONS, (num_tokens,), device=device),
        "cos_sin_cache": torch.cat((angles.cos(), angles.sin()), dim=1).to(case.torch_dtype),
        "q_weight": torch.empty(head_dim, **made).normal_(1.0, 0.1),
        "k_weight": torch.empty(head_dim, **made).normal_(1.0, 0.1),
        "num_q_heads": num_q_heads,
        "num_kv_heads": num_kv_heads,
        "head_dim": head_dim,
    }
    if case.form == "cached":
        blocks = -(-num_tokens // BLOCK_SIZE)
        caches = torch.full((2, blocks, BLOCK_SIZE, num_kv_heads, head_dim), torch.nan, **made)
        slots = torch.randperm(blocks * BLOCK_SIZE, device=device)[:num_tokens]
        call |= {"key_cache": caches[0], "value_cache": caches[1], "slot_mapping": slots}
    return call


def heads(call: Arguments) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v as (num_tokens, heads, head_dim)."""
    sizes = call["num_q_heads"], call["num_kv_heads"], call["num_kv_heads"]
    q, k, v = call["qkv"].unflatten(1, (-1, call["head_dim"])).split(sizes, dim=1)
    return q, k, v


def rotated_heads(call: Arguments) -> Tensor:
    """What the op writes in place: q and k, (num_tokens, heads, head_dim)."""
    count = call["num_q_heads"] + call["num_kv_heads"]
    return call["qkv"].unflatten(1, (-1, call["head_dim"]))[:, :count]  # type: ignore[no-any-return]


def formula(call: Arguments) -> tuple[Tensor, Tensor]:
    """New q and k; k and v in the caches."""
    q, k, v = heads(call)
    cos, sin = rope_reference.cos_and_sin(call["positions"], call["cos_sin_cache"], None, False)
    q, k = (
        rope_reference.rotated(reference.rms_norm(x, weight), cos, sin, True)
        for x, weight in ((q, call["q_weight"]), (k, call["k_weight"]))
    )
    if "key_cache" in call:
        place = call["slot_mapping"] // BLOCK_SIZE, call["slot_mapping"] % BLOCK_SIZE
        call["key_cache"].index_put_(place, k)
        call["value_cache"].index_put_(place, v)
    return q, k


def exact(call: Arguments, tokens: Tensor) -> Tensor:
    """In float64, for some tokens: q, k, and what is cached of k and v, (tokens, heads, head_dim)."""
    names = "cos_sin_cache", "q_weight", "k_weight"
    wide = {name: call[name].double() for name in names} | {"qkv": call["qkv"][tokens].double()}
    sizes = {name: call[name] for name in ("num_q_heads", "num_kv_heads", "head_dim")}
    q, k = formula({**wide, **sizes, "positions": call["positions"][tokens]})
    return torch.cat((q, k, k, heads({**wide, **sizes})[2]) if "key_cache" in call else (q, k), dim=1)


def results(call: Arguments, returned: Any) -> Tensor:
    """What a call came to, for every token, as `exact` has it. returned: q and k, or None where they are in qkv."""
    done = [rotated_heads(call)] if returned is None else [x.view(x.shape[0], -1, call["head_dim"]) for x in returned]
    if "key_cache" in call:
        done += [call[name].flatten(0, 1)[call["slot_mapping"]] for name in ("key_cache", "value_cache")]
    return torch.cat(done, dim=1)
